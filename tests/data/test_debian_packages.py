"""Files out of Debian packages."""

import shutil
from pathlib import Path

import pytest

from vistok.data.debian_packages import packed_files


@pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="needs dpkg-deb")
def test_a_damaged_package_is_named(tmp_path: Path) -> None:
    damaged = tmp_path / "pictures_1.deb"
    damaged.write_bytes(b"cut off")
    with pytest.raises(ValueError, match=r"pictures_1.deb: expected a whole Debian package: .*; fetch it again"):
        list(packed_files(damaged, ["usr/share/picture.png"]))
