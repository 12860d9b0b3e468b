import hashlib
import shutil
import subprocess
from pathlib import Path

import pytest
import skimage

from vistok.data.photos import Photo, fetch_photos, photo_list

needs_dpkg = pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="dpkg-deb is absent: no Debian packages here")


@pytest.fixture
def package(tmp_path):
    """A real Debian package with one photograph, and its entry in the list."""
    content = (Path(skimage.__path__[0]) / "data" / "rocket.jpg").read_bytes()
    tree = tmp_path / "tree"
    (tree / "DEBIAN").mkdir(parents=True)
    (tree / "DEBIAN" / "control").write_text(
        "Package: pictures\nVersion: 1\nArchitecture: all\nMaintainer: nobody <a@b.c>\nDescription: test\n"
    )
    (tree / "usr" / "share").mkdir(parents=True)
    (tree / "usr" / "share" / "rocket.jpg").write_bytes(content)
    subprocess.run(["dpkg-deb", "--build", str(tree), str(tmp_path / "pictures_1_all.deb")], check=True)
    photo = Photo("rocket", "usr/share/rocket.jpg", hashlib.sha256(content).hexdigest(), "SpaceX", "CC0-1.0")
    return tmp_path, {"pictures": [photo]}, content


@needs_dpkg
def test_photographs_are_written_with_author_and_licence(package, tmp_path):
    folder, listed, content = package
    out = tmp_path / "photos"
    assert [photo.name for photo in fetch_photos(out, folder, listed)] == ["rocket"]
    assert (out / "rocket.jpg").read_bytes() == content
    assert "| rocket.jpg | SpaceX | CC0-1.0 | pictures |" in (out / "DATA_LICENSES.md").read_text()
    assert sorted(path.name for path in out.iterdir()) == ["DATA_LICENSES.md", "rocket.jpg"]


@needs_dpkg
def test_an_intact_file_is_kept_without_the_package_and_a_damaged_one_is_replaced(package, tmp_path):
    folder, listed, content = package
    out = tmp_path / "photos"
    list(fetch_photos(out, folder, listed))
    (out / "rocket.jpg").write_bytes(content[:-1])
    list(fetch_photos(out, folder, listed))
    assert (out / "rocket.jpg").read_bytes() == content
    (folder / "pictures_1_all.deb").unlink()
    list(fetch_photos(out, folder, listed))


@needs_dpkg
def test_another_content_than_listed_is_refused_and_not_written(package, tmp_path):
    folder, listed, _ = package
    wrong = [Photo("rocket", "usr/share/rocket.jpg", "0" * 64, "SpaceX", "CC0-1.0")]
    with pytest.raises(ValueError, match="sha256"):
        list(fetch_photos(tmp_path / "photos", folder, {"pictures": wrong}))
    assert list((tmp_path / "photos").iterdir()) == []


@needs_dpkg
def test_a_package_that_lacks_a_listed_picture_is_an_error_that_names_it(package, tmp_path):
    folder, _, _ = package
    other = [Photo("moon", "usr/share/moon.jpg", "0" * 64, "x", "x")]
    with pytest.raises(ValueError, match=r"usr/share/moon\.jpg"):
        list(fetch_photos(tmp_path / "photos", folder, {"pictures": other}))


def test_a_folder_without_the_package_is_an_error_that_says_how_to_get_it(tmp_path):
    with pytest.raises(FileNotFoundError, match="apt-get download"):
        list(fetch_photos(tmp_path / "photos", tmp_path))


def test_the_list_names_every_picture_once_with_author_and_licence():
    photos = [photo for listed in photo_list().values() for photo in listed]
    assert len(photos) >= 40
    assert len({photo.file_name for photo in photos}) == len({photo.sha256 for photo in photos}) == len(photos)
    assert all(photo.author and photo.licence and len(photo.sha256) == 64 for photo in photos)
