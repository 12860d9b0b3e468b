"""Bits of adaptive tokens: ids or numbers, and the mask of slots as an adaptive code that can be decoded."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vistok.metrics.token_bits import mask_bits, rounded, slot_mask, token_bits
from vistok.tokens import TokenSpec, TokenTensor


def tokens_at(slots: list[list[int]], spec: TokenSpec) -> TokenTensor:
    longest = max(map(len, slots))
    source = torch.tensor([row + [7] * (longest - len(row)) for row in slots])
    lengths = torch.tensor([len(row) for row in slots])
    return TokenTensor(spec=spec, embeds=torch.zeros(len(slots), longest, 3), source=source, lengths=lengths)


def test_the_mask_says_the_slots_and_padding_says_nothing() -> None:
    tokens = tokens_at([[0, 2], [1], []], TokenSpec("t", 3))
    assert slot_mask(tokens, 4).int().tolist() == [[1, 0, 1, 0], [0, 1, 0, 0], [0, 0, 0, 0]]
    with pytest.raises(ValueError, match="slots below 2, got 2"):
        slot_mask(tokens, 2)


def test_ids_cost_the_log_of_the_codebook_and_numbers_their_width() -> None:
    slots = [[0, 2], [1]]
    mask = mask_bits(slot_mask(tokens_at(slots, TokenSpec("t", 3)), 8))
    counts = torch.tensor([2.0, 1.0], dtype=torch.float64)
    torch.testing.assert_close(token_bits(tokens_at(slots, TokenSpec("t", 3, (4096,))), 8), counts * 12 + mask)
    torch.testing.assert_close(token_bits(tokens_at(slots, TokenSpec("t", 3)), 8), counts * 48 + mask)


def test_a_mask_of_two_bits_by_hand() -> None:
    # First bit behind an imagined 1: 1/2 each way; then after "1" that bit has 1.5 of 2 counts.
    bits = mask_bits(torch.tensor([[True, True], [True, False], [False, True]]))
    expected = [-math.log2(0.5 * 0.75), -math.log2(0.5 * 0.25), -math.log2(0.5 * 0.5)]
    torch.testing.assert_close(bits, torch.tensor(expected, dtype=torch.float64))


def test_a_prefix_costs_far_less_than_a_random_subset_of_the_same_size() -> None:
    prefix = torch.arange(256)[None] < 64
    scattered = torch.zeros(1, 256, dtype=torch.bool)
    scattered[0, torch.randperm(256, generator=torch.Generator().manual_seed(0))[:64]] = True
    assert float(mask_bits(prefix)) < 20 < 150 < float(mask_bits(scattered))


@settings(max_examples=20, deadline=None)
@given(slots=st.integers(1, 9))
def test_the_lengths_of_all_masks_make_a_complete_code(slots: int) -> None:
    every: Tensor = (torch.arange(2**slots)[:, None] >> torch.arange(slots)) % 2 == 1
    assert float((2.0 ** -mask_bits(every)).sum()) == pytest.approx(1.0, abs=1e-9)


def test_rounded_numbers_lie_within_half_a_step_and_cost_the_entropy_of_each_channel() -> None:
    embeds = torch.tensor([[[0.04, 2.0], [0.98, 2.1], [77.0, 77.0]], [[1.02, 1.9], [0.1, 2.2], [1.0, 2.0]]])
    tokens = TokenTensor(TokenSpec("t", 2), embeds=embeds, lengths=torch.tensor([2, 3]))
    found = rounded(tokens, 0.5)
    assert torch.equal(found.tokens.embeds, (embeds * 2).round() / 2)
    # Of the five valid tokens the first channel holds 0, 1, 1, 0, 1, and the second only 2.
    assert found.bits == pytest.approx(5 * (-0.4 * math.log2(0.4) - 0.6 * math.log2(0.6)))
    with pytest.raises(ValueError, match="a step > 0"):
        rounded(tokens, 0.0)
