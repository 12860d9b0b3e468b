import numpy as np
import pytest
from PIL import Image
from skimage import data

from vistok.data.images import list_images, open_image, reduced


def test_a_folder_is_listed_below_sorted_and_without_other_files(tmp_path):
    (tmp_path / "b").mkdir()
    for name in ("b/two.PNG", "one.jpg"):
        Image.fromarray(data.astronaut()[:8, :8]).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no picture")
    assert [path.name for path in list_images(tmp_path)] == ["two.PNG", "one.jpg"]


def test_a_missing_folder_and_one_without_pictures_are_errors_that_name_it(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        list_images(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="found none"):
        list_images(tmp_path)


def test_a_single_file_is_the_list_of_itself(tmp_path):
    path = tmp_path / "any name"
    path.write_bytes(b"")
    assert list_images(path) == [path]


def test_a_picture_is_opened_as_rgb_and_upright(tmp_path):
    image = Image.fromarray(data.astronaut()[:32, :48]).convert("LA")
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "turned.png", exif=exif)
    opened = open_image(tmp_path / "turned.png")
    assert opened.mode == "RGB" and opened.size == (32, 48)
    assert np.array_equal(np.asarray(opened)[:, ::-1, 0].T, np.asarray(image.getchannel("L")))


@pytest.mark.parametrize("content", [b"", b"this is text", b"\xff\xd8\xff\xe0 broken"])
def test_an_unreadable_file_is_an_error_that_names_it(tmp_path, content):
    (tmp_path / "broken.jpg").write_bytes(content)
    with pytest.raises(ValueError, match="broken.jpg: expected a"):
        open_image(tmp_path / "broken.jpg")


def test_a_picture_with_too_many_pixels_is_refused_unless_more_are_allowed(tmp_path):
    Image.fromarray(data.astronaut()[:32, :48]).save(tmp_path / "large.png")
    with pytest.raises(ValueError, match="large.png: expected at most 100 pixels"):
        open_image(tmp_path / "large.png", max_pixels=100)
    assert open_image(tmp_path / "large.png", max_pixels=32 * 48).size == (48, 32)


def test_a_missing_picture_is_an_error_that_names_it(tmp_path):
    with pytest.raises(FileNotFoundError, match="missing.png"):
        open_image(tmp_path / "missing.png")


@pytest.mark.parametrize(("size", "expected"), [((64, 32), (32, 16)), ((32, 64), (16, 32)), ((47, 31), (24, 16))])
def test_a_picture_is_reduced_to_its_shorter_side(size, expected):
    assert reduced(Image.new("RGB", size, "red"), 16).size == expected
