"""Ids as digits: the mixed radix of FSQ, the loss by hand, absent digits cost nothing."""

import math

import pytest
import torch

import vistok
from vistok.layers.digit_codes import DigitEmbedding, digit_losses, draw_digits, join_digits, split_digits


def test_digits_are_those_of_fsq_and_come_back_as_ids():
    levels = (8, 8, 8, 5, 5, 5)
    ids = torch.randint(64000, (3, 7), generator=torch.Generator().manual_seed(0))
    ids[0, 0] = -1
    digits = split_digits(ids, levels)
    assert torch.equal(join_digits(digits, levels), ids)
    codes = vistok.quantizer("fsq").lookup(ids[1:])
    half = torch.tensor([size // 2 for size in levels])
    assert torch.allclose(codes, (digits[1:] - half) / half)


def test_one_id_by_hand():
    assert split_digits(torch.tensor(11), (2, 3, 4)).tolist() == [1, 2, 1]  # 1 + 2 * 2 + 1 * 6


def test_a_loss_is_the_sum_over_digits_and_absent_ones_cost_nothing():
    logits = torch.tensor([0.0, math.log(3), 0.0, 0.0])  # 1/4 and 3/4, then 1/2 and 1/2
    found = digit_losses(logits.expand(3, 4), torch.tensor([[1, 0], [0, -1], [-1, -1]]), (2, 2))
    assert torch.allclose(found, torch.tensor([math.log(4 / 3) + math.log(2), math.log(4), 0.0]))


def test_the_likeliest_digits_are_drawn_at_temperature_zero():
    logits = torch.tensor([[0.0, 1.0, 3.0, 2.0, 1.0]])
    assert draw_digits(logits, (2, 3), 0).tolist() == [[1, 0]]


def test_rows_add_up_and_absent_digits_add_nothing():
    embed = DigitEmbedding((2, 3), 4)
    rows = embed.table.weight
    made = embed(torch.tensor([[1, 2], [1, -1], [-1, -1]]))
    assert torch.equal(made, torch.stack([rows[1] + rows[4], rows[1], torch.zeros(4)]))


@pytest.mark.parametrize(
    "call", [lambda: split_digits(torch.tensor([6]), (2, 3)), lambda: join_digits(torch.tensor([2]), (2,))]
)
def test_numbers_out_of_range_are_told(call):
    with pytest.raises(ValueError, match="digits: expected"):
        call()


def test_shapes_that_do_not_fit_are_told():
    with pytest.raises(ValueError, match="expected positive sizes"):
        split_digits(torch.tensor([0]), ())
    with pytest.raises(ValueError, match=r"expected digits \[..., 2\]"):
        join_digits(torch.zeros(3, dtype=torch.int64), (2, 2))
    with pytest.raises(ValueError, match="digit_losses: expected"):
        digit_losses(torch.zeros(1, 3), torch.zeros(1, 2, dtype=torch.int64), (2, 2))
