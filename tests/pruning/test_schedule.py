"""Schedules of what layers keep: budgets by hand, the mean over layers by adding up, and what is refused."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vistok.protocols import LayerView
from vistok.pruning._schedule import check_ratios, kept_counts, kept_fractions

RATIOS = (0.75, 0.5, 0.25)


def view_of(layers: int, *counts: int) -> LayerView:
    """The input of a decoder of so many layers, of which a schedule reads the numbers of visual tokens alone."""
    nothing = torch.zeros(len(counts), 0)
    original = torch.tensor(counts)
    return LayerView(-1, layers, *[nothing] * 9, counts=original, original=original)


def by_layer(cuts: Any, ratios: Any, view: LayerView, budget: Any = None) -> dict[int, list[float]]:
    return {layer: kept.tolist() for layer, kept in kept_fractions("toy", cuts, ratios, view, budget).items()}


@pytest.mark.parametrize(
    ("budget", "expected"),
    [
        (None, [0.75, 0.5, 0.25]),
        # Layers see 1, r, s, t of the tokens; r, s, t keep their proportions.
        (0.625, [0.75, 0.5, 0.25]),
        (0.4, [0.3, 0.2, 0.1]),
        (0.9, [1.0, 1.0, 0.6]),
        (1.0, [1.0, 1.0, 1.0]),
        (0.25, [0.0, 0.0, 0.0]),
        (10, [0.75, 0.5, 0.25]),
        (40, [1.0, 1.0, 1.0]),
    ],
)
def test_a_budget_scales_all_ratios_alike_up_to_one(budget: Any, expected: list[float]) -> None:
    found = by_layer((0, 1, 2), RATIOS, view_of(4, 16), budget)
    assert list(found) == [0, 1, 2]
    assert [kept[0] for kept in found.values()] == pytest.approx(expected)


def test_a_number_of_tokens_is_another_fraction_for_every_item() -> None:
    found = by_layer((0,), (0.5,), view_of(4, 10, 20, 0), 5)
    assert found[0] == pytest.approx([1 / 3, 0.0, 1.0])
    assert by_layer((0,), (0.5,), view_of(4, 10, 20), torch.tensor([10, 10]))[0] == pytest.approx([1.0, 1 / 3])


@settings(max_examples=100, deadline=None)
@given(
    st.integers(2, 40).flatmap(lambda n: st.tuples(st.just(n), st.sets(st.integers(0, n - 2), min_size=1, max_size=4))),
    st.lists(st.floats(0.01, 1.0), min_size=4, max_size=4),
    st.floats(0.0, 1.0),
)
def test_the_layers_see_the_budget_on_average(
    decoder: tuple[int, set[int]], ratios: list[float], within: float
) -> None:
    layers, places = decoder
    cuts = sorted(places)
    least = (cuts[0] + 1) / layers
    budget = least + within * (1 - least) or 1.0
    found = by_layer(cuts, sorted(ratios, reverse=True)[: len(cuts)], view_of(layers, 100), budget)
    seen, now = [], 1.0
    for layer in range(layers):
        seen.append(now)
        now = found[layer][0] if layer in found else now
    assert sum(seen) / layers == pytest.approx(budget)
    assert seen == sorted(seen, reverse=True)


def test_layers_that_are_one_in_a_shallow_decoder_are_one_cut_to_the_smaller_ratio() -> None:
    depths = (3 / 32, 7 / 32, 16 / 32)
    assert by_layer(depths, RATIOS, view_of(32, 9)) == {2: [0.75], 6: [0.5], 15: [0.25]}
    assert by_layer(depths, RATIOS, view_of(8, 9)) == {0: [0.5], 3: [0.25]}
    assert by_layer(depths, RATIOS, view_of(2, 9)) == {0: [0.25]}
    # One layer sees everything, seven keep the same.
    assert by_layer((0.01, 0.02), (0.5, 0.25), view_of(8, 9), 0.3)[0] == pytest.approx([(0.3 * 8 - 1) / 7])


def test_layers_may_stand_in_any_order_and_ratios_fall_with_depth() -> None:
    assert by_layer((3, 1), (0.5, 0.25), view_of(8, 9)) == {1: [0.5], 3: [0.25]}


@pytest.mark.parametrize(
    ("budget", "error", "message"),
    [
        (0.2, ValueError, "toy: expected a budget of at least 0.250 .* got 0.200"),
        (1.5, ValueError, r"a fraction in \(0, 1\]"),
        (0.0, ValueError, r"a fraction in \(0, 1\]"),
        (0, ValueError, "at least 1 token"),
        (True, TypeError, "got bool"),
        ("half", TypeError, "got str"),
        (torch.tensor([3, 3]), ValueError, "each of 1 items"),
        (torch.tensor(3), ValueError, "each of 1 items"),
    ],
)
def test_what_is_no_budget_or_out_of_reach_is_refused(budget: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        by_layer((0, 1, 2), RATIOS, view_of(4, 16), budget)


def test_a_cut_that_leaves_nothing_bounds_the_budget_from_above() -> None:
    assert by_layer((0, 1), (0.5, 0.0), view_of(4, 16), 0.5) == {0: [1.0], 1: [0.0]}
    with pytest.raises(ValueError, match="at most 0.500 .* behind layer 1 leaves none, got 0.600"):
        by_layer((0, 1), (0.5, 0.0), view_of(4, 16), 0.6)


@pytest.mark.parametrize("ratios", [(0.5,), (0.25, 0.5), (1.5, 0.5), (0.5, -0.1), (0.5, float("nan"))])
def test_ratios_fall_within_zero_and_one(ratios: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="toy: expected 2 ratios in .* falling"):
        check_ratios("toy", (1, 2), ratios)
    assert check_ratios("toy", (1, 2), [0.5, 0.5]) == (0.5, 0.5)


def test_counts_are_whole_and_at_least_one_unless_the_schedule_says_none() -> None:
    fractions = torch.tensor([0.5, 0.5, 0.0, 0.01, 0.01, 1.0, 0.1 + 0.2], dtype=torch.float64)
    original = torch.tensor([5, 7, 9, 9, 0, 4, 10])
    assert kept_counts(fractions, original).tolist() == [2, 4, 0, 1, 0, 4, 3]
    assert kept_counts(fractions, original, down=True).tolist() == [2, 3, 0, 1, 0, 4, 3]
    below = torch.tensor([0.29999999999999993], dtype=torch.float64)
    assert kept_counts(below, torch.tensor([10]), down=True).tolist() == [3]
