"""Stable top-k: by hand, against an ordinary sort, mistakes."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vistok.ops import stable_topk


def test_ties_go_to_the_lowest_index_and_not_a_number_never_wins() -> None:
    scores = torch.tensor([[1.0, 2.0, 2.0, torch.nan], [torch.nan, -torch.inf, 0.0, torch.inf]])
    assert stable_topk(scores, 2).tolist() == [[1, 2], [2, 3]]
    assert stable_topk(scores, 1).tolist() == [[1], [3]]
    assert stable_topk(torch.full((5,), torch.nan), 2).tolist() == [0, 1]
    assert stable_topk(scores, 0).shape == (2, 0)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(-3, 3), min_size=1, max_size=40), st.data())
def test_it_is_a_sort_by_score_and_index(values: list[int], data: st.DataObject) -> None:
    k = data.draw(st.integers(0, len(values)))
    expected = sorted(sorted(range(len(values)), key=lambda i: (-values[i], i))[:k])
    assert stable_topk(torch.tensor(values, dtype=torch.bfloat16), k).tolist() == expected


@pytest.mark.parametrize("k", [-1, 4])
def test_too_many_are_refused(k: int) -> None:
    with pytest.raises(ValueError, match=f"0 <= k <= 3, got {k}"):
        stable_topk(torch.zeros(2, 3), k)
