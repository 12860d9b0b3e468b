"""The objective of compression and meaning, on numbers small enough to work out by hand."""

import pytest
import torch

from vistok.metrics.codebook_meaning import (
    Clustering,
    Comparison,
    clustering,
    compare_clusters,
    complexity,
    distortion,
    mean_comparison,
)

LINE = torch.tensor([[0.0], [2.0], [10.0], [12.0]])


def test_the_objective_of_two_pairs_on_a_line() -> None:
    found = clustering(torch.tensor([3, 3, 8, 8]), LINE, beta=2.0)
    assert found.complexity == pytest.approx(1)  # log2 4 - (1/2 + 1/2) log2 2
    assert found.distortion == pytest.approx(4 / 104)  # four times 1 about 1 and 11, of 36 + 16 + 16 + 36 about 6
    assert found.objective == pytest.approx(1 + 2 * 4 / 104)
    assert (found.items, found.clusters) == (4, 2)


def test_unequal_clusters_cost_what_their_ids_cost() -> None:
    assert complexity(torch.tensor([0, 0, 0, 1])) == pytest.approx(2 - 0.75 * 1.584962500721156)
    assert complexity(torch.tensor([5, 5, 5])) == 0
    assert complexity(torch.arange(8)) == pytest.approx(3)


def test_one_cluster_leaves_all_variance_and_single_items_none() -> None:
    assert distortion(torch.zeros(4).long(), LINE) == pytest.approx(1)
    assert distortion(torch.arange(4), LINE) == pytest.approx(0)
    assert distortion(torch.zeros(3).long(), torch.ones(3, 2)) == 0
    assert distortion(torch.tensor([0, 0, 1, 1]), 1000 * LINE + 7) == pytest.approx(4 / 104)


def test_k_means_with_as_many_clusters_stands_beside_the_codes() -> None:
    found = compare_clusters(torch.tensor([0, 1, 0, 1]), LINE, {"side": torch.tensor([0, 0, 1, 1])})
    assert found.codes.clusters == found.k_means.clusters == 2
    assert found.k_means.distortion == pytest.approx(4 / 104) and found.codes.distortion == pytest.approx(100 / 104)
    assert found.codes.labels["side"].plug_in == pytest.approx(0)
    assert found.k_means.labels["side"].plug_in == pytest.approx(1)


def test_break_even_is_where_both_objectives_meet() -> None:
    def at(bits: float, share: float) -> Clustering:
        return Clustering(10, 2, bits, share, bits + share, {})

    assert Comparison(at(3, 0.1), at(2, 0.3)).break_even == pytest.approx(5)
    assert Comparison(at(2, 0.1), at(3, 0.3)).break_even is None  # fewer bits and less left: better everywhere
    assert Comparison(at(2, 0.1), at(2, 0.3)).break_even is None


def test_means_over_places_are_means_of_every_number() -> None:
    labels = {"side": torch.tensor([0, 0, 1, 1])}
    both = [compare_clusters(codes, LINE, labels) for codes in (torch.tensor([0, 0, 1, 1]), torch.zeros(4).long())]
    mean = mean_comparison(both)
    assert mean.codes.complexity == pytest.approx(0.5) and mean.codes.clusters == pytest.approx(1.5)
    assert mean.codes.labels["side"].plug_in == pytest.approx(0.5)
    with pytest.raises(ValueError, match="at least one"):
        mean_comparison([])


def test_vectors_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="beta >= 0, got .4., .3, 1. and 1.0"):
        clustering(torch.zeros(4).long(), LINE[:3])
    with pytest.raises(ValueError, match="beta >= 0"):
        clustering(torch.zeros(4).long(), LINE, beta=-1.0)
