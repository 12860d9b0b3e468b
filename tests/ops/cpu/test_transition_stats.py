"""The C++ transition statistics on every kind of processor that this one can stand for."""

import ctypes
import platform

import pytest
import torch
from torch import Tensor

from vistok.ops import transition_stats
from vistok.ops.cpu import library

# Vectors of 8 and of 4 floats beside what this processor has.
ARCHITECTURES = ["native"]
if platform.machine() == "x86_64":
    ARCHITECTURES += ["x86-64", "x86-64-v3"][: 1 + torch.backends.cpu.get_cpu_capability().startswith("AVX")]


@pytest.fixture(params=ARCHITECTURES)
def built_for(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    found = ctypes.CDLL(str(library.build("transition_stats", request.param)))
    monkeypatch.setattr(library, "_loaded", {"transition_stats": found})
    return str(request.param)


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("dim", [1, 7, 64, 1031])
def test_every_vector_width_gives_the_sums_of_float64(built_for: str, dim: int, dtype: torch.dtype) -> None:
    a, b = draw(0, 9, dim).to(dtype), draw(1, 9, dim).to(dtype)
    found = transition_stats(a, b, backend="cpu")
    for x, y in zip(found, transition_stats(a.double(), b.double()), strict=True):
        torch.testing.assert_close(x, y.float(), rtol=1e-5, atol=1e-4)
