"""Evenly spaced tokens, on examples written out."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import vistok
from vistok.tokens import TokenSpec, TokenTensor


def slots_of(length: int, budget: int, slots: int | None = None) -> list[int]:
    ids = torch.zeros(1, slots or length, dtype=torch.int64)
    tokens = TokenTensor(TokenSpec("toy"), indices=ids, lengths=torch.tensor([length]))
    selection = vistok.pruner("uniform").select(tokens, budget)
    assert selection.lengths is not None
    return selection.index[0, : int(selection.lengths[0])].tolist()


@pytest.mark.parametrize(
    ("length", "budget", "expected"),
    [
        (8, 4, [1, 3, 5, 7]),
        (9, 3, [1, 4, 7]),
        (10, 4, [1, 3, 6, 8]),  # 1.25, 3.75, 6.25, 8.75
        (5, 1, [2]),
        (4, 4, [0, 1, 2, 3]),
        (3, 7, [0, 1, 2]),
    ],
)
def test_tokens_lie_in_the_middle_of_equal_stretches(length: int, budget: int, expected: list[int]) -> None:
    assert slots_of(length, budget) == expected
    assert slots_of(length, budget, slots=17) == expected


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 300), st.integers(1, 300))
def test_gaps_differ_by_one_at_most_and_both_ends_are_treated_alike(length: int, budget: int) -> None:
    chosen = slots_of(length, budget)
    gaps = [right - left for left, right in zip(chosen, chosen[1:], strict=False)]
    assert len(chosen) == min(length, budget)
    assert not gaps or 1 <= min(gaps) <= max(gaps) <= min(gaps) + 1
    assert abs(chosen[0] - (length - 1 - chosen[-1])) <= 1


def test_it_needs_no_embeds() -> None:
    assert slots_of(6, 2) == [1, 4]
