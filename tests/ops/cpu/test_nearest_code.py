"""The C++ search on every kind of processor that this one can stand for, with any number of threads."""

import ctypes
import platform
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from vistok.ops import nearest_code
from vistok.ops.cpu import library

# Vectors of 8 and of 4 floats beside what this processor has.
ARCHITECTURES = ["native"]
if platform.machine() == "x86_64":
    ARCHITECTURES += ["x86-64", "x86-64-v3"][: 1 + torch.backends.cpu.get_cpu_capability().startswith("AVX")]


@pytest.fixture(params=ARCHITECTURES)
def built_for(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    found = ctypes.CDLL(str(library.build("nearest_code", request.param)))
    monkeypatch.setattr(library, "_loaded", {"nearest_code": found})
    return str(request.param)


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("metric", ["l2", "cosine", "dot"])
@pytest.mark.parametrize("dim", [1, 5, 48, 200])
def test_every_vector_width_gives_the_certified_ids_of_the_reference(built_for: str, dim: int, metric: str) -> None:
    x, codebook = draw(0, 301, dim), draw(1, 1009, dim)
    found = nearest_code(x, codebook, metric, precision="certified", backend="cpu")
    assert torch.equal(found, nearest_code(x, codebook, metric, precision="certified", backend="reference"))


def test_every_vector_width_takes_the_lowest_of_equal_codes(built_for: str) -> None:
    x, codebook = draw(0, 70, 3).round(), draw(1, 500, 3).round()
    expected = (x.double()[:, None] - codebook.double()).square().sum(-1)
    lowest = torch.where(expected == expected.amin(1, keepdim=True), torch.arange(500), 500).amin(1)
    for precision in ("exact", "certified"):
        assert torch.equal(nearest_code(x, codebook, precision=precision, backend="cpu"), lowest)


def test_the_number_of_threads_changes_nothing(threads: None) -> None:
    x, codebook = draw(0, 1000, 8), draw(1, 5000, 8)
    found = []
    for count in (1, 2, 5):
        torch.set_num_threads(count)
        found.append([nearest_code(x, codebook, precision=p, backend="cpu") for p in ("exact", "certified")])
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True))


@pytest.mark.parametrize("scale", [1e-38, 1e-20, 1e15, 1e19, 3e37])
def test_certified_ids_survive_scales_where_float32_fails(scale: float) -> None:
    x, codebook = scale * draw(0, 40, 6), scale * draw(1, 90, 6)
    truth = (x.double()[:, None] - codebook.double()).square().sum(-1).argmin(1)
    assert torch.equal(nearest_code(x, codebook, precision="certified", backend="cpu"), truth)
