"""The C++ of fsq, lfq and their ways back: every length of vectors, sizes that fill no tile, any number of threads."""

import ctypes
import platform
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from vistok.ops import bsq, bsq_unpack, fsq, fsq_unpack, lfq, lfq_unpack
from vistok.ops.cpu import library

# Vectors of 8 and of 4 floats beside what this processor has.
ARCHITECTURES = ["native"]
if platform.machine() == "x86_64":
    ARCHITECTURES += ["x86-64", "x86-64-v3"][: 1 + torch.backends.cpu.get_cpu_capability().startswith("AVX")]
LEVELS = ([3], [8, 8, 8, 5, 5, 5], [7, 6, 5, 4], [128, 2, 100], [3] * 39, [2] * 62)


@pytest.fixture(params=ARCHITECTURES)
def built_for(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    stems = ("fsq", "fsq_unpack", "lfq", "lfq_unpack")
    found = {stem: ctypes.CDLL(str(library.build(stem, request.param))) for stem in stems}
    monkeypatch.setattr(library, "_loaded", found)
    return str(request.param)


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def randn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("rows", [1, 15, 16, 17, 1009])
def test_every_vector_length_gives_the_bits_of_the_reference(built_for: str, rows: int) -> None:
    for levels in LEVELS:
        z = 2 * randn(rows, len(levels))
        codes, ids = fsq(z, levels, backend="cpu")
        expected = fsq(z, levels, backend="reference")
        assert torch.equal(codes, expected[0]) and torch.equal(ids, expected[1])
        assert torch.equal(fsq_unpack(ids, levels, backend="cpu"), codes)
    for dim in (1, 8, 18, 62):
        for pack, unpack in ((lfq, lfq_unpack), (bsq, bsq_unpack)):
            codes, ids = pack(randn(rows, dim), backend="cpu")
            expected = pack(randn(rows, dim), backend="reference")
            assert torch.equal(codes, expected[0]) and torch.equal(ids, expected[1])
            assert torch.equal(unpack(ids, dim, backend="cpu"), codes)


def test_the_number_of_threads_changes_nothing(threads: None) -> None:
    found = []
    for count in (1, 2, 5):
        torch.set_num_threads(count)
        codes, ids = fsq(randn(3001, 6), LEVELS[1], backend="cpu")
        signs, bits = lfq(randn(3001, 18), backend="cpu")
        back = fsq_unpack(ids, LEVELS[1], backend="cpu"), lfq_unpack(bits, 18, backend="cpu")
        found.append((codes, ids, signs, bits, *back))
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True))
