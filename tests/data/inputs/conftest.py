import io
import tarfile
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from PIL import Image
from skimage import data

_PIXELS = data.astronaut()


def _picture(number: int = 0, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(_PIXELS[8 * number : 8 * number + 8, :12]).save(buffer, kind)
    return buffer.getvalue()


def _write_tar(path: Path, members: Iterable[tuple[str, bytes]], **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", **options) as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


@pytest.fixture(scope="session")
def picture() -> Callable[..., bytes]:
    """A small picture's file content, another one for each number."""
    return _picture


@pytest.fixture(scope="session")
def write_tar() -> Callable[..., Path]:
    """Write a tar file of (name, content) as tarfile does."""
    return _write_tar


@pytest.fixture
def pictures(tmp_path) -> Path:
    """Three pictures, one of them in a folder below."""
    for number, name in enumerate(("b.png", "sub/a.JPG", "c.jpeg")):
        path = tmp_path / "pictures" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(_picture(number, "PNG" if name.endswith("png") else "JPEG"))
    return tmp_path / "pictures"
