"""Density peaks: groups that are plain to see, and the formula in float64 loops."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vistok.pruning._density_peaks import density_peaks


def owners(points: Tensor, clusters: int, allowed: list[bool] | None = None) -> list[int]:
    """Of one item."""
    usable = torch.ones(len(points), dtype=torch.bool) if allowed is None else torch.tensor(allowed)
    found: list[int] = density_peaks(points[None], usable[None], torch.tensor([clusters]))[0].tolist()
    return found


def test_groups_that_lie_apart_become_clusters_around_their_middle() -> None:
    # Three groups on a line, three points each; the middle one of a group is the densest.
    points = torch.tensor([[0.0], [1.0], [0.45], [9.0], [9.6], [10.1], [20.0], [21.0], [20.5]])
    assert owners(points, 3) == [2, 2, 2, 4, 4, 4, 8, 8, 8]


def by_loops(points: Tensor, clusters: int) -> list[int]:
    """The formula for one item, in float64."""
    count, points = len(points), points.double()
    distance = [[float((a - b).norm()) / math.sqrt(points.shape[1]) for b in points] for a in points]
    density = [math.exp(-sum(d * d for d in sorted(row)[:clusters]) / clusters) for row in distance]
    farthest = max(map(max, distance))
    peaks = []
    for i in range(count):
        above = [distance[i][j] for j in range(count) if (density[j], -j) > (density[i], -i)]
        peaks.append(density[i] * min(above, default=farthest))
    centres = sorted(sorted(range(count), key=lambda i: (-peaks[i], i))[:clusters])
    return [i if i in centres else min(centres, key=lambda c: (distance[i][c], c)) for i in range(count)]


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 25), st.integers(1, 8), st.integers(1, 6), st.integers(0, 2**31))
def test_owners_equal_the_formula_in_loops(count: int, width: int, clusters: int, seed: int) -> None:
    points = torch.randn(count, width, generator=torch.Generator().manual_seed(seed))
    clusters = min(clusters, count)
    found = owners(points, clusters)
    assert found == by_loops(points, clusters)
    assert len(set(found)) == clusters


def test_an_item_of_a_batch_is_clustered_as_alone_whatever_its_padding_holds() -> None:
    draw = torch.Generator().manual_seed(4)
    points = torch.randn(3, 12, 5, generator=draw)
    allowed = torch.rand(3, 12, generator=draw) < 0.6
    points[~allowed] = torch.nan
    clusters = torch.tensor([1, 3, 2])
    found = density_peaks(points, allowed, clusters)
    for row in range(3):
        places = allowed[row].nonzero().flatten()
        alone = owners(points[row, places], int(clusters[row]))
        assert found[row, places].tolist() == places[torch.tensor(alone)].tolist()
        assert bool((found[row, ~allowed[row]] == -1).all())


def test_equal_points_go_by_place() -> None:
    assert owners(torch.ones(5, 3), 2) == [0, 1, 0, 0, 0]


@pytest.mark.parametrize("broken", [torch.nan, torch.inf])
def test_a_point_that_is_not_finite_belongs_to_nothing(broken: float) -> None:
    points = torch.tensor([[0.0], [broken], [0.1], [0.9]])
    assert owners(points, 2) == [0, -1, 0, 3]
    assert owners(points, 4) == [0, -1, 2, 3]
    assert owners(points[1:2], 1) == [-1]


def test_no_clusters_take_no_points() -> None:
    assert owners(torch.ones(2, 3), 0) == [-1, -1]
    assert owners(torch.ones(2, 3), 1, [False, False]) == [-1, -1]
