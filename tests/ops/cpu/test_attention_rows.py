"""The C++ attention rows on every kind of processor that this one can stand for."""

import ctypes
import platform

import pytest
import torch
from torch import Tensor

from vistok.ops import attention_rows
from vistok.ops.cpu import library

# Vectors of 8 and of 4 floats beside what this processor has.
ARCHITECTURES = ["native"]
if platform.machine() == "x86_64":
    ARCHITECTURES += ["x86-64", "x86-64-v3"][: 1 + torch.backends.cpu.get_cpu_capability().startswith("AVX")]


@pytest.fixture(params=ARCHITECTURES)
def built_for(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    found = ctypes.CDLL(str(library.build("attention_rows", request.param)))
    monkeypatch.setattr(library, "_loaded", {"attention_rows": found})
    return str(request.param)


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rows", [1, 2, 3, 5, 9, 70])
def test_every_vector_width_gives_the_rows_of_float64(built_for: str, rows: int, dtype: torch.dtype) -> None:
    """Rows of two heads that share a key head: few that go along the width, and many that meet packed keys."""
    q, k = draw(0, 1, 2, rows, 53).to(dtype), draw(1, 1, 1, 131, 53).to(dtype)
    found = attention_rows(q, k, causal_offset=40, return_rows=True, backend="cpu")
    exact = attention_rows(q.double(), k.double(), causal_offset=40, return_rows=True)
    for a, b in zip(found, exact, strict=True):
        torch.testing.assert_close(a, b.float(), rtol=1e-4, atol=1e-7)


def test_weights_far_from_the_largest_are_tiny_and_never_wrong(built_for: str) -> None:
    """Over the whole range of the exponential, down to weights that are 0 in float32."""
    scores = torch.linspace(-110, 0, 4001)
    found = attention_rows(torch.ones(1, 1, 1, 1), scores[None, None, :, None], scale=1.0, backend="cpu").mean[0]
    exact = scores.double().softmax(0)
    shown = scores > -87
    assert bool(((found - exact).abs() <= 2e-6 * exact)[shown].all())
    assert bool((found[~shown] <= 1e-37).all())
