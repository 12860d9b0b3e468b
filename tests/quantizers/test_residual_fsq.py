"""Residual FSQ: codes by hand, finer with every level, the range that no level clamps."""

import pytest
import torch
from torch import Tensor

from vistok.quantizers.residual_fsq import ResidualFSQ


def before_bound(values: Tensor, quantizer: ResidualFSQ) -> Tensor:
    """z whose soft clamp is `values`."""
    reach = quantizer.sizes / (quantizer.sizes - 1)
    return torch.atanh(values / reach) * reach


def test_codes_and_ids_by_hand() -> None:
    quantizer = ResidualFSQ([3, 2], depth=2)
    out = quantizer(before_bound(torch.tensor([[0.4, -0.2]]), quantizer))
    # Channel 0, levels -1, 0, 1: 0.4 -> 0, then 3 * 0.4 -> 1, a third. Channel 1, -1 and 1: -0.2 -> -1, then 1.6 -> 1.
    torch.testing.assert_close(out.embeds, torch.tensor([[1 / 3, -0.5]]))
    assert out.indices.tolist() == [[1 + 3 * 0, 2 + 3 * 1]]


@pytest.mark.parametrize("levels", [[2, 3], [8, 5, 5, 3]])
def test_the_error_falls_by_the_levels_with_every_round(levels: list[int]) -> None:
    z = 3 * torch.randn(4000, len(levels), generator=torch.Generator().manual_seed(0))
    for depth in (1, 2, 4):
        quantizer = ResidualFSQ(levels, depth)
        reach = quantizer.sizes / (quantizer.sizes - 1)
        bounded = (z / reach).tanh() * reach
        worst = (quantizer(z).embeds - bounded).abs().amax(0)
        expected = reach * quantizer.sizes.float() ** -depth  # half a cell of the finest grid
        assert bool((worst <= expected * 1.001).all()) and bool((worst > expected * 0.5).all())


def test_dropped_levels_give_the_coarser_code_and_the_gradient_is_that_of_the_bound() -> None:
    quantizer = ResidualFSQ([4, 3], depth=3)
    z = torch.randn(50, 2, generator=torch.Generator().manual_seed(1)).requires_grad_()
    out = quantizer(z)
    coarse = out.indices.clone()
    coarse[:, 1:] = -1
    torch.testing.assert_close(quantizer.lookup(coarse), ResidualFSQ([4, 3], depth=1)(z.detach()).embeds)
    (found,) = torch.autograd.grad(out.embeds.sum(), z)
    torch.testing.assert_close(found, 1 - (z.detach() * (quantizer.sizes - 1) / quantizer.sizes).tanh().square())


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match="expected depth >= 1, got 0"):
        ResidualFSQ([3], depth=0)
    with pytest.raises(ValueError, match=r"expected ids \[..., 2\], got \[5, 3\]"):
        ResidualFSQ([3], depth=2).lookup(torch.zeros(5, 3, dtype=torch.int64))
