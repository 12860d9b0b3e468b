"""From budgets to counts and slots."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vistok.ops.budget import as_selection, best_slots, kept_tokens
from vistok.tokens import TokenSpec, TokenTensor


def toy(lengths: list[int], slots: int, ragged: bool = True) -> TokenTensor:
    ids = torch.zeros(len(lengths), slots, dtype=torch.int64)
    return TokenTensor(TokenSpec("toy"), indices=ids, lengths=torch.tensor(lengths) if ragged else None)


def test_a_number_is_cut_to_what_an_item_has() -> None:
    slots, counts = kept_tokens(toy([5, 2, 0], 6), 3)
    assert slots == 3 and counts.tolist() == [3, 2, 0]


def test_a_fraction_rounds_half_to_even_and_keeps_at_least_one() -> None:
    slots, counts = kept_tokens(toy([5, 3, 1, 0, 7], 7), 0.5)
    assert slots == 4  # 3.5
    assert counts.tolist() == [2, 2, 1, 0, 4]  # 2.5, 1.5, 0.5 (at least one), none, 3.5


def test_numbers_per_item_leave_the_width_as_it_is() -> None:
    slots, counts = kept_tokens(toy([5, 3, 0], 6), torch.tensor([2, 4, 1], dtype=torch.int32))
    assert slots == 6 and counts.tolist() == [2, 3, 0] and counts.dtype == torch.int64


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 3000), st.floats(0.0, 1.0, exclude_min=True))
def test_a_full_item_keeps_exactly_as_many_tokens_as_the_result_is_wide(length: int, fraction: float) -> None:
    slots, counts = kept_tokens(toy([length], length), fraction)
    assert counts.tolist() == [slots]


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 20), min_size=1, max_size=4), st.floats(0.001, 1.0), st.floats(0.001, 1.0))
def test_more_budget_never_keeps_fewer_tokens(lengths: list[int], one: float, other: float) -> None:
    tokens = toy(lengths, 20)
    low, high = (kept_tokens(tokens, fraction) for fraction in sorted((one, other)))
    assert low[0] <= high[0] and bool((low[1] <= high[1]).all())
    assert bool((high[1] <= high[0]).all())


def test_best_slots_are_the_lowest_ranks_in_ascending_order() -> None:
    ranks = torch.tensor([[3, 0, 2, 1], [1, 0, 3, 2]])
    index = best_slots(ranks, 3, torch.tensor([3, 1]))
    assert index[0].tolist() == [1, 2, 3]
    assert index[1, :1].tolist() == [1]
    assert sorted(index[1].tolist()) == sorted(set(index[1].tolist()))


def test_a_selection_has_lengths_only_where_items_may_differ() -> None:
    index, counts = torch.zeros(2, 1, dtype=torch.int64), torch.tensor([1, 1])
    assert as_selection(toy([2, 2], 2, ragged=False), index, counts, 1).lengths is None
    assert as_selection(toy([2, 2], 2), index, counts, 1).lengths is counts
    assert as_selection(toy([2, 2], 2, ragged=False), index, counts, torch.tensor([1, 1])).lengths is counts
