"""Max-min diversity: picks written out, and an independent float64 greedy."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import vistok
from vistok.pruning.divprune import loneliest
from vistok.tokens import TokenSpec, TokenTensor


def directions(*degrees: float) -> Tensor:
    angles = torch.tensor(degrees, dtype=torch.float64).deg2rad()
    return torch.stack([angles.cos(), angles.sin()], 1).float()


def pick(points: Tensor, budget: int) -> list[int]:
    tokens = TokenTensor(TokenSpec("toy"), embeds=points[None])
    chosen: list[int] = vistok.pruner("divprune").select(tokens, budget).index[0].tolist()
    return chosen


@pytest.mark.parametrize(
    ("budget", "expected"),
    [
        (1, [3]),  # to the nearest other token: 10, 10, 20, 60 and 50 degrees
        (2, [1, 3]),  # from 90: 80, 90, 60 and 50 degrees
        (3, [1, 3, 4]),  # from 90 and 0: 10, 30 and 50 degrees
        (4, [1, 2, 3, 4]),  # from 90, 0 and 140: 10 and 30 degrees
    ],
)
def test_the_picks_by_hand(budget: int, expected: list[int]) -> None:
    assert pick(directions(10, 0, 30, 90, 140), budget) == expected


def greedy(points: Tensor, budget: int) -> list[int]:
    """The formula over the whole matrix of distances, in the order of picking; float32 makes equal what is."""
    unit = torch.nn.functional.normalize(points.double(), dim=1)
    distance = (1 - (unit @ unit.mT).float()).tolist()
    slots = range(len(distance))
    score = [min((distance[i][j] for j in slots if j != i), default=1.0) for i in slots]
    chosen: list[int] = []
    while len(chosen) < budget:
        chosen.append(max((i for i in slots if i not in chosen), key=lambda i: (score[i], -i)))
        score = [min(distance[i][j] for j in chosen) for i in slots]
    return chosen


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 30), st.integers(3, 8), st.integers(0, 2**31))
def test_picks_equal_the_formula_over_the_whole_matrix(slots: int, width: int, seed: int) -> None:
    points = torch.randn(slots, width, generator=torch.Generator().manual_seed(seed))
    order = greedy(points, slots)
    for budget in range(1, max(2, slots // 2)):
        assert pick(points, budget) == sorted(order[:budget])


def test_of_two_tokens_nearest_to_each_other_the_lower_slot_is_first() -> None:
    draw = torch.Generator().manual_seed(0)
    for _ in range(50):
        one, noise = torch.randn(2, 33, generator=draw)
        pair = torch.stack([one, one + noise])
        # Three equal tokens at a right angle to both, so that the pair is the loneliest.
        twins = torch.linalg.svd(pair).Vh[2:3].expand(3, -1)
        assert pick(torch.cat([twins, pair]), 1) == [3]


def test_one_block_of_rows_gives_what_many_give(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = torch.Generator().manual_seed(3)
    embeds, valid = torch.randn(4, 50, 8, generator=draw), torch.rand(4, 50, generator=draw) < 0.8
    expected = loneliest(embeds, valid)
    monkeypatch.setattr("vistok.pruning.divprune._COMPARED", 4 * 50 * 7)
    assert torch.equal(loneliest(embeds, valid), expected)


def test_equal_tokens_are_taken_from_the_front_and_nan_last() -> None:
    assert pick(torch.ones(5, 3), 3) == [0, 1, 2]
    points = directions(0, 20, 90, 180)
    points[2] = torch.nan
    assert pick(points, 3) == [0, 1, 3]


def test_more_budget_adds_to_what_less_budget_picked() -> None:
    points = torch.randn(30, 8, generator=torch.Generator().manual_seed(2))
    picks = [set(pick(points, budget)) for budget in range(1, 31)]
    assert all(small < large for small, large in zip(picks, picks[1:], strict=False))


def test_tokens_without_embeds_are_refused_with_the_remedy() -> None:
    tokens = TokenTensor(TokenSpec("toy"), indices=torch.zeros(1, 4, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"divprune: expected tokens with embeds, got indices only.*lookup"):
        vistok.pruner("divprune").select(tokens, 2)
