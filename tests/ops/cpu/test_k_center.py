"""The C++ picks on every kind of processor that this one can stand for."""

import ctypes
import platform

import pytest
import torch
from torch import Tensor

from vistok.ops import k_center, max_sum
from vistok.ops.cpu import library

# Vectors of 8 and of 4 floats beside what this processor has.
ARCHITECTURES = ["native"]
if platform.machine() == "x86_64":
    ARCHITECTURES += ["x86-64", "x86-64-v3"][: 1 + torch.backends.cpu.get_cpu_capability().startswith("AVX")]


@pytest.fixture(params=ARCHITECTURES)
def built_for(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    loaded = {stem: ctypes.CDLL(str(library.build(stem, request.param))) for stem in ("k_center", "max_sum")}
    monkeypatch.setattr(library, "_loaded", loaded)
    return str(request.param)


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("metric", ["l2", "cosine"])
@pytest.mark.parametrize("width", [1, 5, 48, 200, 700])
def test_every_vector_width_gives_the_certified_picks_of_the_reference(built_for: str, width: int, metric: str) -> None:
    x = draw(0, 2, 101, width)
    found, expected = (k_center(x, 60, metric, certified=True, backend=name) for name in ("cpu", "reference"))
    assert torch.equal(found.indices, expected.indices)


@pytest.mark.parametrize("width", [2, 48, 300])
def test_every_vector_width_picks_the_lowest_of_equal_tokens(built_for: str, width: int) -> None:
    x = draw(0, 2, 90, width).round()
    found, expected = (k_center(x, 90, backend=name) for name in ("cpu", "reference"))
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("width", [2, 16, 300])
def test_every_vector_width_sums_the_same_similarities(built_for: str, width: int) -> None:
    place = torch.rand(2, 90, width, generator=torch.Generator().manual_seed(0)).argmax(2)
    x = torch.nn.functional.one_hot(place, width) * draw(1, 2, 90, 1).sign()
    found, expected = (max_sum(x, 90, backend=name) for name in ("cpu", "reference"))
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
