"""k-means finds what is apart, repeats itself, and leaves no cluster empty while vectors differ."""

import pytest
import torch

from vistok.metrics.k_means import k_means


def blobs(count: int, each: int) -> torch.Tensor:
    draw = torch.Generator().manual_seed(0)
    centres = 100 * torch.eye(count)
    return centres.repeat_interleave(each, 0) + torch.randn(count * each, count, generator=draw)


def test_clusters_that_lie_apart_are_found_and_the_same_seed_finds_the_same() -> None:
    vectors = blobs(5, 8)
    own = k_means(vectors, 5, seed=3)
    assert own.reshape(5, 8).unique(dim=1).shape == (5, 1) and len(own.unique()) == 5
    assert torch.equal(own, k_means(vectors, 5, seed=3))


def test_on_a_line_two_clusters_split_where_the_squares_are_least() -> None:
    vectors = torch.tensor([[0.0], [1.0], [2.0], [9.0], [11.0]])
    own = k_means(vectors, 2)
    assert own[0] == own[1] == own[2] != own[3] == own[4]


def test_as_many_clusters_as_vectors_leave_each_alone_and_equal_ones_share() -> None:
    assert len(k_means(blobs(4, 3), 12).unique()) == 12
    same = torch.ones(6, 2)
    assert len(k_means(same, 3).unique()) == 1


def test_more_clusters_than_vectors_are_refused() -> None:
    for clusters in (0, 4):
        with pytest.raises(ValueError, match=f"1..n clusters, got .3, 2. and {clusters}"):
            k_means(torch.ones(3, 2), clusters)
