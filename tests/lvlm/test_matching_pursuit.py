"""Greedy choice, least squares on what was chosen, and no more anchors than needed."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vistok.lvlm.matching_pursuit import matching_pursuit


def test_by_hand():
    anchors = torch.tensor([[2.0, 0, 0], [0, 3, 0], [0, 1, 1]])
    vectors = torch.tensor([[4.0, 1, 0], [0, 2, 1]])
    assert torch.allclose(matching_pursuit(vectors, anchors, 1), torch.tensor([[2.0, 0, 0], [0, 0, 1.5]]).double())
    assert torch.allclose(
        matching_pursuit(vectors, anchors, 2), torch.tensor([[2.0, 1 / 3, 0], [0, 1 / 3, 1]]).double()
    )


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 6))
def test_it_is_the_loop_of_the_textbook(seed, count):
    draw = torch.Generator().manual_seed(seed)
    vectors = torch.randn(5, 8, generator=draw, dtype=torch.float64)
    anchors = torch.randn(12, 8, generator=draw, dtype=torch.float64)
    weights = matching_pursuit(vectors, anchors, count)
    unit = anchors / anchors.norm(dim=1, keepdim=True)
    for vector, found in zip(vectors, weights, strict=True):
        chosen, residual = [], vector
        for _ in range(count):
            chosen.append(int((unit @ residual).abs().argmax()))
            best = torch.linalg.lstsq(anchors[chosen].T, vector[:, None]).solution[:, 0]
            residual = vector - best @ anchors[chosen]
        expected = torch.zeros(12, dtype=torch.float64)
        expected[chosen] = best
        assert torch.allclose(found, expected, atol=1e-8)


def test_a_sparse_sum_is_found_again_and_takes_no_further_anchors(generator):
    anchors = torch.linalg.qr(torch.randn(10, 10, generator=generator))[0]
    weights = torch.zeros(4, 10, dtype=torch.float64)
    weights[0, 2], weights[1, [1, 7]], weights[2, [0, 3, 9]] = 2.0, torch.tensor([1.0, -3]).double(), 1.5
    found = matching_pursuit(weights @ anchors.double(), anchors, 6)
    assert torch.allclose(found, weights, atol=1e-6)
    assert ((found.abs() > 1e-5).sum(1) == torch.tensor([1, 2, 3, 0])).all()


def test_an_anchor_that_stands_twice_is_no_trouble():
    anchors = torch.tensor([[1.0, 0], [1, 0], [0, 1]])
    found = matching_pursuit(torch.tensor([[3.0, 4]]), anchors, 3)
    assert torch.allclose(found @ anchors.double(), torch.tensor([[3.0, 4]]).double())


@pytest.mark.parametrize(
    ("vectors", "anchors", "count", "message"),
    [
        (torch.zeros(2, 3), torch.ones(4, 2), 1, r"vectors \[n, d\]"),
        (torch.zeros(2, 3), torch.ones(4, 3), 5, r"1\.\.4 anchors"),
        (torch.zeros(2, 3), torch.tensor([[1.0, 0, 0], [0, 0, 0]]), 1, "anchor 1 is"),
    ],
)
def test_what_does_not_fit_is_named(vectors, anchors, count, message):
    with pytest.raises(ValueError, match=message):
        matching_pursuit(vectors, anchors, count)


def test_results_are_made_where_the_vectors_are():
    vectors, anchors = torch.eye(3)[:2], torch.eye(3)
    with torch.device("meta"):  # stands for any other default
        found = matching_pursuit(vectors, anchors, 2)
    assert torch.equal(found, torch.eye(3, dtype=torch.float64)[:2])
