"""Nearest code: equal to float64 brute force, ties to the lowest index, at every scale, in bounded memory."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from vistok.ops import nearest_code


def brute_force(x: Tensor, codebook: Tensor, metric: str) -> Tensor:
    """Distances in float64, all of them; the first of equal ones."""
    x, codebook = x.double(), codebook.double()
    if metric == "l2":
        return (x[:, None] - codebook).square().sum(-1).argmin(1)
    if metric == "cosine":
        codebook = codebook / codebook.norm(dim=1, keepdim=True).clamp(min=1e-12)
    return (x @ codebook.T).argmax(1)


def integers(seed: int, *shape: int, largest: int = 2) -> Tensor:
    """Small whole numbers: float32 computes their distances exactly, and many are equal."""
    return torch.randint(-largest, largest + 1, shape, generator=torch.Generator().manual_seed(seed)).float()


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.integers(0, 30), st.integers(1, 40), st.integers(1, 6), st.sampled_from(["l2", "dot"]))
def test_it_equals_brute_force_with_ties(seed: int, rows: int, codes: int, dim: int, metric: str) -> None:
    x, codebook = integers(seed, rows, dim), integers(seed + 1, codes, dim)
    assert torch.equal(nearest_code(x, codebook, metric), brute_force(x, codebook, metric))


@pytest.mark.parametrize("metric", ["l2", "dot"])
@pytest.mark.parametrize("codes", [4095, 4096, 4097, 9001])
def test_it_equals_brute_force_when_codes_and_rows_do_not_fill_their_tiles(codes: int, metric: str) -> None:
    x, codebook = integers(0, 1030, 3, largest=9), integers(1, codes, 3, largest=9)
    assert torch.equal(nearest_code(x, codebook, metric), brute_force(x, codebook, metric))


@pytest.mark.parametrize("metric", ["l2", "cosine", "dot"])
def test_a_tie_across_tiles_goes_to_the_lowest_index(metric: str) -> None:
    codebook = torch.zeros(9000, 2)
    codebook[:, 1] = -1.0
    codebook[[77, 5000, 8999]] = torch.tensor([1.0, 0.0])
    assert nearest_code(torch.tensor([[1.0, 0.0]]), codebook, metric).tolist() == [77]


@pytest.mark.parametrize("metric", ["l2", "cosine", "dot"])
def test_it_is_as_near_as_brute_force_up_to_rounding(metric: str) -> None:
    generator = torch.Generator().manual_seed(0)
    x, codebook = torch.randn(500, 16, generator=generator), torch.randn(3000, 16, generator=generator)
    found, best = nearest_code(x, codebook, metric), brute_force(x, codebook, metric)
    codes = torch.nn.functional.normalize(codebook, dim=1) if metric == "cosine" else codebook
    bias = codes.double().square().sum(1) / 2 if metric == "l2" else codes.new_zeros(len(codes)).double()

    def score(ids: Tensor) -> Tensor:
        return bias[ids] - (x.double() * codes[ids].double()).sum(1)

    torch.testing.assert_close(score(found), score(best), rtol=0, atol=1e-5)
    assert float((found == best).float().mean()) > 0.99


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_half_inputs_are_searched_in_float32_and_double_in_double(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    x, codebook = (torch.randn(n, 8, generator=generator).to(dtype) for n in (300, 700))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = nearest_code(x, codebook)
    assert torch.equal(found, brute_force(x, codebook, "l2"))


@pytest.mark.parametrize("scale", [1e-6, 1e-3, 1.0, 1e3])
@pytest.mark.parametrize(("codes", "dim"), [(16384, 8), (1000, 32), (256, 4)])
def test_every_code_is_its_own_nearest(codes: int, dim: int, scale: float) -> None:
    codebook = scale * torch.randn(codes, dim, generator=torch.Generator().manual_seed(0))
    rows = torch.arange(codes)[: 3 * 1024]
    for metric in ("l2", "cosine"):
        assert torch.equal(nearest_code(codebook[rows], codebook, metric), rows)


def test_codes_of_scale_one_over_k_are_told_apart() -> None:
    codebook = (torch.rand(16384, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1) / 16384
    assert torch.equal(nearest_code(codebook[:3000], codebook), torch.arange(3000))


def test_it_never_holds_rows_times_codes() -> None:
    class Largest(TorchDispatchMode):
        numel = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            out = func(*args, **(kwargs or {}))
            for tensor in out if isinstance(out, tuple | list) else (out,):
                self.numel = max(self.numel, tensor.numel() if isinstance(tensor, Tensor) else 0)
            return out

    x, codebook = torch.randn(3000, 4), torch.randn(9000, 4)
    with Largest() as seen:
        nearest_code(x, codebook)
    assert 0 < seen.numel <= 1024 * 4096


def test_leading_axes_stay_and_no_rows_are_fine() -> None:
    codebook = torch.eye(3)
    assert nearest_code(torch.eye(3).reshape(1, 3, 1, 3), codebook).tolist() == [[[0], [1], [2]]]
    assert nearest_code(torch.zeros(2, 0, 3), codebook).shape == (2, 0)
    assert nearest_code(torch.eye(3)[1], codebook).tolist() == 1


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match="expected x .* and codebook"):
        nearest_code(torch.zeros(2, 3), torch.zeros(4, 2))
    with pytest.raises(ValueError, match="K > 0"):
        nearest_code(torch.zeros(2, 3), torch.zeros(0, 3))
    with pytest.raises(ValueError, match="expected metric 'l2', 'cosine' or 'dot', got 'l1'"):
        nearest_code(torch.zeros(2, 3), torch.zeros(4, 3), "l1")
