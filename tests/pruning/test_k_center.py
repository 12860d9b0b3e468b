"""Greedy k-center against written-out picks, an independent float64 greedy, and the 2x bound."""

from itertools import combinations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import vistok
from vistok.tokens import TokenSpec, TokenTensor


def tokens_of(points: list[list[float]] | Tensor) -> TokenTensor:
    embeds = torch.as_tensor(points, dtype=torch.float32)
    return TokenTensor(TokenSpec("toy"), embeds=embeds if embeds.ndim == 3 else embeds[None])


def pick(points: list[list[float]] | Tensor, budget: int, **settings: object) -> list[int]:
    index = vistok.pruner("k_center", **settings).select(tokens_of(points), budget).index
    chosen: list[int] = index[0].tolist()
    return chosen


LINE = [[0.0], [1.0], [2.0], [3.0], [10.0]]


@pytest.mark.parametrize(
    ("start", "budget", "expected"),
    [
        (0, 1, [0]),
        (0, 2, [0, 4]),
        (0, 3, [0, 3, 4]),  # distances to {0, 10}: 1, 2, 3
        (0, 4, [0, 1, 3, 4]),  # 1 and 2 are both 1 away: the lowest slot
        (2, 2, [2, 4]),
        (9, 2, [0, 4]),  # starts at the last token
        ("medoid", 1, [3]),  # mean 3.2
        ("max_norm", 1, [4]),
        ("max_norm", 2, [0, 4]),
    ],
)
def test_picks_on_a_line(start: str | int, budget: int, expected: list[int]) -> None:
    assert pick(LINE, budget, metric="l2", start=start) == expected


def test_cosine_looks_at_directions_only() -> None:
    points = [[1.0, 0.0], [100.0, 1.0], [0.0, 0.1], [-7.0, 0.5]]
    assert pick(points, 2, start=0) == [0, 3]
    assert pick(points, 3, start=0) == [0, 2, 3]
    assert pick(points, 2, start=0, metric="l2") == [0, 1]


def test_cosine_does_not_depend_on_the_length_of_tokens() -> None:
    draw = torch.Generator().manual_seed(0)
    points = torch.randn(20, 5, generator=draw)
    scale = 2.0 ** torch.randint(-3, 4, (20, 1), generator=draw)  # powers of two leave no rounding
    assert pick(points, 7) == pick(points * scale, 7)


def test_equal_tokens_are_taken_from_the_front() -> None:
    assert pick([[2.0, 1.0]] * 5, 3) == [0, 1, 2]
    assert pick([[0.0, 0.0]] * 5, 3, metric="l2", start="max_norm") == [0, 1, 2]


def test_duplicates_wait_until_everything_else_is_covered() -> None:
    points = [[0.0, 1.0], [0.0, 1.0], [1.0, 0.0], [1.0, 0.0], [-1.0, 0.0]]
    assert pick(points, 3, start=0) == [0, 2, 4]
    assert pick(points, 4, start=0) == [0, 1, 2, 4]


def test_the_medoid_has_the_least_sum_of_squared_distances() -> None:
    draw = torch.Generator().manual_seed(4)
    for _ in range(20):
        points = torch.randn(15, 4, generator=draw)
        for metric, x in (("l2", points), ("cosine", torch.nn.functional.normalize(points, dim=1))):
            sums = torch.cdist(x.double(), x.double()).square().sum(1)
            assert pick(points, 1, metric=metric) == [int(sums.argmin())]


def greedy(points: Tensor, budget: int, start: int) -> set[int]:
    """Farthest first in float64 Python, ties to the lowest slot."""
    rows = points.double().tolist()
    chosen = [start]
    while len(chosen) < budget:
        reach = [
            -1.0 if i in chosen else min(sum((a - b) ** 2 for a, b in zip(row, rows[j], strict=True)) for j in chosen)
            for i, row in enumerate(rows)
        ]
        chosen.append(reach.index(max(reach)))
    return set(chosen)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 12), st.integers(1, 4), st.integers(1, 3), st.integers(0, 2**31))
def test_picks_equal_a_plain_greedy_on_integer_points_full_of_ties(
    slots: int, width: int, span: int, seed: int
) -> None:
    draw = torch.Generator().manual_seed(seed)
    points = torch.randint(-span, span + 1, (slots, width), generator=draw)
    start = int(torch.randint(0, slots, (), generator=draw))
    for budget in range(1, slots + 1):
        assert set(pick(points.float(), budget, metric="l2", start=start)) == greedy(points, budget, start)


@settings(max_examples=25, deadline=None)
@given(st.integers(3, 9), st.integers(1, 4), st.integers(0, 2**31))
def test_the_radius_is_at_most_twice_the_best_one(slots: int, budget: int, seed: int) -> None:
    points = torch.randn(slots, 3, generator=torch.Generator().manual_seed(seed))
    distances = torch.cdist(points.double(), points.double())
    budget = min(budget, slots)

    def radius(chosen: tuple[int, ...]) -> float:
        return float(distances[list(chosen)].amin(0).max())

    best = min(radius(subset) for subset in combinations(range(slots), budget))
    for start in ("medoid", "max_norm", 0):
        assert radius(tuple(pick(points, budget, metric="l2", start=start))) <= 2 * best + 1e-9


def test_more_budget_adds_to_what_less_budget_picked() -> None:
    points = torch.randn(30, 8, generator=torch.Generator().manual_seed(2))
    picks = [set(pick(points, budget)) for budget in range(1, 31)]
    assert all(small < large for small, large in zip(picks, picks[1:], strict=False))


def test_permuting_the_tokens_permutes_the_picks() -> None:
    draw = torch.Generator().manual_seed(6)
    points = torch.randn(25, 8, generator=draw)
    order = torch.randperm(25, generator=draw)
    shuffled = {int(order[slot]) for slot in pick(points[order], 9)}
    assert shuffled == set(pick(points, 9))


def test_a_nan_token_is_taken_last() -> None:
    points = torch.tensor(LINE)
    points[1] = torch.nan
    assert pick(points, 4, metric="l2", start=0) == [0, 2, 3, 4]
    assert pick(points, 5, metric="l2", start=0) == [0, 1, 2, 3, 4]


def test_no_gradient_is_recorded() -> None:
    tokens = tokens_of(torch.randn(8, 3, generator=torch.Generator().manual_seed(0)).requires_grad_())
    assert not vistok.pruner("k_center").select(tokens, 3).index.requires_grad


def test_tokens_without_embeds_are_refused_with_the_remedy() -> None:
    tokens = TokenTensor(TokenSpec("toy"), indices=torch.zeros(1, 4, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"expected tokens with embeds, got indices only.*lookup"):
        vistok.pruner("k_center").select(tokens, 2)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"metric": "l1"}, "expected metric to be one of .* got 'l1'"),
        ({"start": "centre"}, "expected start to be one of .* got 'centre'"),
        ({"start": -1}, "or a slot >= 0, got -1"),
        ({"start": True}, "got True"),
        ({"start": 0.5}, "got 0.5"),
    ],
)
def test_settings_out_of_range_are_named(setting: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        vistok.pruner("k_center", **setting)
