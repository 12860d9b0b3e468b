"""Fashion-MNIST (arXiv:1708.07747): grey pictures of clothes in ten classes, in the IDX format of MNIST.

The Debian package holds the four files of the authors; every file is known by the sha256 of its content, so copies from
elsewhere, packed by gzip or not, are as good.
"""

import gzip
import tempfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vistok.config import read_yaml
from vistok.data.debian_packages import check_sha256, get_package, packed_files
from vistok.data.shard import write_atomic

CLASSES = (
    "t-shirt",
    "trousers",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)
_PARTS = {"train": "train", "test": "t10k"}
_UNSIGNED_BYTE = 8  # in the third byte of an IDX file: what its values are


@dataclass(frozen=True)
class FashionMnist:
    """images [N, 28, 28] uint8, white on black; labels [N] int64, places in CLASSES."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]


@dataclass(frozen=True)
class IdxFile:
    """One file: name without .gz, sha256 (hex) of its content."""

    name: str
    sha256: str


def fashion_mnist_files() -> list[IdxFile]:
    """The four files of configs/data/fashion_mnist.yaml."""
    return [IdxFile(**entry) for entry in _described()["files"]]


def fetch_fashion_mnist(folder: str | Path, packages: str | Path | None = None) -> Iterator[str]:
    """Write each of the four files that `folder` lacks as .gz, yield its name, then write DATA_LICENSES.md.

    packages: folder with the .deb file; default: `apt-get download` fetches it. Raises: FileNotFoundError if the
    package or a tool is missing; ValueError if a file is not the one that was listed.
    """
    described, out = _described(), Path(folder)
    out.mkdir(parents=True, exist_ok=True)
    listed = {f"{described['path']}/{file.name}.gz": file for file in fashion_mnist_files()}
    missing = {path: file for path, file in listed.items() if not _intact(out, file)}
    if missing:
        with tempfile.TemporaryDirectory() as scratch:
            archive = get_package(described["package"], packages, Path(scratch))
            for path, packed in packed_files(archive, missing):
                check_sha256(_unpacked(packed, path), missing[path].sha256, f"{archive.name}: {path}")
                write_atomic(out / f"{missing[path].name}.gz", packed)
    yield from (file.name for file in listed.values())
    text = f"# Fashion-MNIST\n\nDebian package {described['package']}; {described['author']}; {described['licence']}\n"
    write_atomic(out / "DATA_LICENSES.md", text.encode())


def read_fashion_mnist(folder: str | Path, split: str, files: list[IdxFile] | None = None) -> FashionMnist:
    """The pictures of a split, "train" (60,000) or "test" (10,000), from a folder with its IDX files.

    files: those that are expected, if others than Zalando's. Raises: ValueError for another split, or a file that is
    damaged or not the one that is listed; FileNotFoundError naming the file that is not there and what fetches it.
    """
    if split not in _PARTS:
        raise ValueError(f"fashion_mnist: expected split {' or '.join(_PARTS)}, got {split!r}")
    part = _PARTS[split]
    listed = {file.name: file for file in (fashion_mnist_files() if files is None else files)}
    images, labels = (
        read_idx(_content(Path(folder), listed[f"{part}-{name}-ubyte"]), f"{part}-{name}-ubyte")
        for name in ("images-idx3", "labels-idx1")
    )
    if images.ndim != 3 or labels.shape != images.shape[:1]:
        raise ValueError(
            f"{folder}: expected images [N, H, W] and labels [N], got {list(images.shape)} and {list(labels.shape)}"
        )
    return FashionMnist(images, labels.astype(np.int64))


def read_idx(content: bytes, name: str) -> NDArray[np.uint8]:
    """The array of an IDX file of unsigned bytes: 0, 0, 8, number of axes, sizes (big-endian int32), values.

    Raises: ValueError naming the file if it is something else or cut off.
    """
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] != _UNSIGNED_BYTE:
        raise ValueError(f"{name}: expected an IDX file of unsigned bytes, got one that begins with {content[:4]!r}")
    begin = 4 + 4 * content[3]
    if len(content) < begin:
        raise ValueError(f"{name}: expected {content[3]} sizes, the file ends before them")
    shape = np.frombuffer(content, ">i4", content[3], 4).astype(int).tolist()
    values = np.frombuffer(content, np.uint8, offset=begin)
    if len(values) != np.prod(shape):
        raise ValueError(f"{name}: expected {np.prod(shape)} values for {shape}, got {len(values)}")
    return values.reshape(shape)


def _described() -> Mapping[str, Any]:
    return read_yaml("data", "fashion_mnist")


def _content(folder: Path, file: IdxFile) -> bytes:
    packed, plain = folder / f"{file.name}.gz", folder / file.name
    if not packed.is_file() and not plain.is_file():
        raise FileNotFoundError(f"{packed}: no such file; `vistok data fashion_mnist {folder}` fetches it")
    path = packed if packed.is_file() else plain
    content = _unpacked(path.read_bytes(), str(path)) if path == packed else path.read_bytes()
    check_sha256(content, file.sha256, str(path))
    return content


def _unpacked(packed: bytes, name: str) -> bytes:
    try:
        return gzip.decompress(packed)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{name}: expected a whole gzip file: {error}") from error


def _intact(folder: Path, file: IdxFile) -> bool:
    try:
        _content(folder, file)
    except (FileNotFoundError, ValueError):
        return False
    return True
