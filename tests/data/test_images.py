import numpy as np
import pytest
from PIL import Image
from skimage import data

from vistok.data.images import list_images, open_image


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


def test_grey_palette_alpha_and_cmyk_become_rgb(tmp_path):
    rgb = Image.fromarray(data.astronaut()[:32, :48])
    for mode, suffix in (("L", "png"), ("P", "png"), ("CMYK", "jpg"), ("1", "png")):
        path = tmp_path / f"{mode}.{suffix}"
        rgb.convert(mode).save(path)
        opened = open_image(path)
        assert opened.mode == "RGB" and opened.size == (48, 32)


def test_transparent_pixels_become_white(tmp_path):
    pixels = np.zeros((4, 4, 4), np.uint8)
    pixels[:2, :, 3] = 255
    Image.fromarray(pixels, "RGBA").save(tmp_path / "alpha.png")
    opened = np.asarray(open_image(tmp_path / "alpha.png"))
    assert (opened[:2] == 0).all() and (opened[2:] == 255).all()


def test_sixteen_bit_grey_is_scaled_not_clipped(tmp_path):
    Image.fromarray(np.array([[0, 257 * 100, 65535]], np.uint16)).save(tmp_path / "deep.png")
    assert np.asarray(open_image(tmp_path / "deep.png"))[0, :, 0].tolist() == [0, 100, 255]


def test_exif_orientation_is_applied(tmp_path):
    image = Image.fromarray(data.astronaut()[:32, :48])
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "turned.jpg", exif=exif)
    assert open_image(tmp_path / "turned.jpg").size == (32, 48)


@pytest.mark.parametrize("content", [b"", b"this is text", b"\xff\xd8\xff\xe0 broken"])
def test_an_unreadable_file_is_an_error_that_names_it(tmp_path, content):
    (tmp_path / "broken.jpg").write_bytes(content)
    with pytest.raises(ValueError, match="broken.jpg"):
        open_image(tmp_path / "broken.jpg")


def test_a_truncated_picture_is_an_error_that_names_it(tmp_path):
    Image.fromarray(data.astronaut()).save(tmp_path / "whole.jpg")
    content = (tmp_path / "whole.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match="cut.jpg"):
        open_image(tmp_path / "cut.jpg")


def test_a_picture_with_too_many_pixels_is_refused_from_its_header(tmp_path, monkeypatch):
    monkeypatch.setattr("vistok.data.images.MAX_PIXELS", 100)
    Image.fromarray(data.astronaut()[:32, :48]).save(tmp_path / "large.png")
    with pytest.raises(ValueError, match="at most 100 pixels"):
        open_image(tmp_path / "large.png")
