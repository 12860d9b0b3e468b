"""FSQ: ids and codes against the formula, for every codebook up to 2^16."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vistok.quantizers.fsq import FSQ


def preimage(quantizer: FSQ, codes: Tensor) -> Tensor:
    """Vectors that lie in the middle of each code's cell: z = atanh((round(b) + o) / h) - atanh(o / h)."""
    level = torch.tensor(quantizer.levels, dtype=torch.float64)
    half = (level - 1) * 1.001 / 2
    offset = torch.where(level % 2 == 0, 0.5, 0.0).double()
    rounded = codes.double() * (level // 2)
    return (torch.atanh((rounded + offset) / half) - torch.atanh(offset / half)).float()


@st.composite
def level_lists(draw: st.DrawFn) -> list[int]:
    """Level counts whose product is at most 2^16."""
    levels: list[int] = []
    for _ in range(draw(st.integers(1, 8))):
        most = 2**16 // math.prod(levels)
        if most < 2:
            break
        levels.append(draw(st.integers(2, min(most, 300))))
    return levels


@settings(max_examples=25, deadline=None)
@given(level_lists())
def test_every_id_round_trips(levels: list[int]) -> None:
    quantizer = FSQ(levels).eval()
    ids = torch.arange(math.prod(levels))
    codes = quantizer.lookup(ids)
    assert codes.abs().max() <= 1
    out = quantizer(preimage(quantizer, codes))
    assert torch.equal(out.indices, ids)
    assert torch.equal(out.embeds, codes)
    assert float(out.stats["usage"]) == 1.0


def test_ids_by_hand() -> None:
    quantizer = FSQ([4, 3, 5])
    # level 4 counts -2..1, level 3 -1..1, level 5 -2..2; the first channel varies fastest: digits + (1, 4, 12)
    assert quantizer.lookup(torch.tensor([0, 1, 4, 12])).tolist() == [
        [-1.0, -1.0, -1.0],
        [-0.5, -1.0, -1.0],
        [-1.0, 0.0, -1.0],
        [-1.0, -1.0, -0.5],
    ]
    assert quantizer.codebook_sizes == (60,)
    assert quantizer(torch.zeros(3)).indices.tolist() == 2 + 1 * 4 + 2 * 12  # zero is code 0 in each channel
    assert quantizer(torch.full((3,), 99.0)).indices.tolist() == 59
    assert quantizer(torch.full((3,), -99.0)).indices.tolist() == 0


def test_published_sizes() -> None:
    assert FSQ([8, 5, 5, 5]).codebook_sizes == (1000,)
    assert FSQ([8, 8, 8, 5, 5, 5]).codebook_sizes == (64000,)


def test_the_gradient_is_that_of_the_bounded_value() -> None:
    quantizer = FSQ([5])
    z = torch.tensor([[0.3]], requires_grad=True)
    quantizer(z).embeds.sum().backward()
    assert z.grad is not None
    assert z.grad.item() == pytest.approx((1 - math.tanh(0.3) ** 2) * (4 * 1.001 / 2) / 2)


def test_eight_to_the_eighth_codes_need_no_table() -> None:
    quantizer = FSQ([8] * 8)
    z = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))
    out = quantizer(z)
    assert torch.equal(quantizer.lookup(out.indices), out.embeds)
    assert not list(quantizer.buffers())


def test_casting_the_module_moves_no_id() -> None:
    quantizer = FSQ([8, 8, 8, 5, 5, 5])
    z = torch.randn(2000, 6, generator=torch.Generator().manual_seed(0))
    expected = quantizer(z).indices
    assert torch.equal(quantizer.to(torch.bfloat16)(z).indices, expected)


@pytest.mark.parametrize("levels", [[], [8, 1], [2] * 63])
def test_mistakes_are_named(levels: list[int]) -> None:
    with pytest.raises(ValueError, match="fsq: expected levels >= 2"):
        FSQ(levels)
