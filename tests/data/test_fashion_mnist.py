import gzip
import hashlib
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from vistok.data.fashion_mnist import (
    CLASSES,
    IdxFile,
    fashion_mnist_files,
    fetch_fashion_mnist,
    read_fashion_mnist,
    read_idx,
)

needs_dpkg = pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="dpkg-deb is absent: no Debian packages here")


def idx(values: np.ndarray) -> bytes:
    head = bytes([0, 0, 8, values.ndim]) + b"".join(size.to_bytes(4, "big") for size in values.shape)
    return head + values.tobytes()


@pytest.fixture
def small(tmp_path: Path) -> tuple[Path, list[IdxFile], dict[str, np.ndarray]]:
    """A folder with both splits of five pictures, one split packed and one not, and the list of its files."""
    draw = np.random.default_rng(0)
    arrays = {}
    for part in ("train", "t10k"):
        arrays[f"{part}-images-idx3-ubyte"] = draw.integers(0, 256, (5, 4, 3), dtype=np.uint8)
        arrays[f"{part}-labels-idx1-ubyte"] = draw.integers(0, 10, 5, dtype=np.uint8)
    for name, values in arrays.items():
        if name.startswith("train"):
            (tmp_path / f"{name}.gz").write_bytes(gzip.compress(idx(values)))
        else:
            (tmp_path / name).write_bytes(idx(values))
    listed = [IdxFile(name, hashlib.sha256(idx(values)).hexdigest()) for name, values in arrays.items()]
    return tmp_path, listed, arrays


def test_both_splits_are_read_packed_or_not(small: tuple[Path, list[IdxFile], dict[str, np.ndarray]]) -> None:
    folder, listed, arrays = small
    for split, part in (("train", "train"), ("test", "t10k")):
        found = read_fashion_mnist(folder, split, listed)
        assert np.array_equal(found.images, arrays[f"{part}-images-idx3-ubyte"]) and found.images.dtype == np.uint8
        assert np.array_equal(found.labels, arrays[f"{part}-labels-idx1-ubyte"]) and found.labels.dtype == np.int64


def test_another_content_than_listed_is_refused(small: tuple[Path, list[IdxFile], dict[str, np.ndarray]]) -> None:
    folder, _, _ = small
    with pytest.raises(ValueError, match="train-images-idx3-ubyte.gz has sha256 .* another version"):
        read_fashion_mnist(folder, "train")


def test_a_missing_file_or_split_and_a_broken_archive_say_what_to_do(
    small: tuple[Path, list[IdxFile], dict[str, np.ndarray]], tmp_path: Path
) -> None:
    folder, listed, _ = small
    with pytest.raises(ValueError, match="expected split train or test, got 'validation'"):
        read_fashion_mnist(folder, "validation", listed)
    packed = folder / "train-labels-idx1-ubyte.gz"
    packed.write_bytes(packed.read_bytes()[:-9])
    with pytest.raises(ValueError, match="labels-idx1-ubyte.gz: expected a whole gzip file"):
        read_fashion_mnist(folder, "train", listed)
    packed.unlink()
    with pytest.raises(FileNotFoundError, match="vistok data fashion_mnist"):
        read_fashion_mnist(folder, "train", listed)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"\x89PNG", "unsigned bytes"),
        (b"\0\0", "unsigned bytes"),
        (b"\0\0\x0d\x01\0\0\0\0", "unsigned bytes"),
        (b"\0\0\x08\x02\0\0\0\x05", "2 sizes"),
        (b"\0\0\x08\x01\0\0\0\x05abcd", r"5 values for \[5\], got 4"),
        (b"\0\0\x08\x01\0\0\0\x05abcdef", r"5 values for \[5\], got 6"),
    ],
)
def test_what_is_no_whole_idx_file_is_named(content: bytes, said: str) -> None:
    with pytest.raises(ValueError, match=f"labels: expected .*{said}"):
        read_idx(content, "labels")


def test_the_list_names_two_files_of_each_split_and_ten_classes() -> None:
    names = {file.name for file in fashion_mnist_files()}
    assert names == {f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")}
    assert all(len(file.sha256) == 64 for file in fashion_mnist_files()) and len(set(CLASSES)) == 10


@needs_dpkg
def test_a_package_with_other_files_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    inside = tree / "usr/share/datasets/fashion-mnist"
    inside.mkdir(parents=True)
    (tree / "DEBIAN").mkdir()
    (tree / "DEBIAN" / "control").write_text(
        "Package: dataset-fashion-mnist\nVersion: 9\nArchitecture: all\nMaintainer: nobody <a@b.c>\nDescription: test\n"
    )
    (inside / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(b"other"))
    subprocess.run(["dpkg-deb", "--build", str(tree), str(tmp_path / "dataset-fashion-mnist_9_all.deb")], check=True)
    with pytest.raises(ValueError, match="t10k-labels-idx1-ubyte.gz has sha256"):
        list(fetch_fashion_mnist(tmp_path / "out", tmp_path))
    assert list((tmp_path / "out").iterdir()) == []
    with pytest.raises(FileNotFoundError, match="apt-get download dataset-fashion-mnist"):
        list(fetch_fashion_mnist(tmp_path / "out", tree))
