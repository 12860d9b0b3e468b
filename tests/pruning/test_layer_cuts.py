"""Ranks, choices and cuts that layer pruners share, against sorting in plain Python."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vistok.pruning._layer_cuts import at_visual, cut_to, highest, last_token, members, ranked

from .layer_views import view_of

SCORES = st.sampled_from([0.0, 0.5, 1.0, -1.0, math.inf, math.nan])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(SCORES, st.booleans()), min_size=1, max_size=9), st.integers(0, 10))
def test_the_highest_allowed_are_chosen_ties_to_the_lowest_place_nan_last(
    slots: list[tuple[float, bool]], count: int
) -> None:
    scores = torch.tensor([[score for score, _ in slots]])
    allowed = torch.tensor([[allow for _, allow in slots]])
    ids = [i for i, (_, allow) in enumerate(slots) if allow]
    expected = sorted(
        ids, key=lambda i: (math.isnan(slots[i][0]), -slots[i][0] if slots[i][0] == slots[i][0] else 0, i)
    )
    assert ranked(scores, allowed)[0, : len(ids)].tolist() == expected
    chosen = highest(scores, allowed, torch.tensor([count]))
    assert chosen[0].nonzero().flatten().tolist() == sorted(expected[:count])


def test_the_last_token_is_the_last_one_that_is_valid() -> None:
    view = view_of(["svvtt", "svt..", "vv"])
    assert last_token(view).nonzero().tolist() == [[0, 4], [1, 2], [2, 1]]


def test_a_cut_names_what_each_item_keeps_in_order_and_zeroes_scores_of_no_token() -> None:
    view = view_of(["svvvt", "svt"])
    assert members(view).tolist() == [[True, True, True], [True, False, False]]
    values = at_visual(view.source[..., None].float(), view)
    assert values[0, :, 0].tolist() == [1, 2, 3]
    chosen = torch.tensor([[True, False, True], [True, False, False]])
    cut = cut_to(view, chosen, torch.full((2, 3), torch.nan), values)
    assert cut.lengths is not None and cut.embeds is not None and cut.scores is not None
    assert cut.lengths.tolist() == [2, 1] and cut.index[0].tolist() == [0, 2] and cut.index[1, 0] == 0
    assert cut.embeds[0, :, 0].tolist() == [1, 3] and cut.embeds[1, 0, 0] == 1
    assert cut.scores[1].tolist() == [pytest.approx(torch.nan, nan_ok=True), 0, 0]


def test_nothing_is_a_cut_as_well() -> None:
    view = view_of(["st"])
    cut = cut_to(view, highest(at_visual(view.hidden[..., 0], view), members(view), torch.tensor([3])))
    assert cut.index.shape == (1, 0) and cut.lengths is not None and cut.lengths.tolist() == [0]
