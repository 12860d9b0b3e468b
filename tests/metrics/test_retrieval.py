"""Recall at k: worked out by hand, ties in expectation, both directions, bad input refused."""

from itertools import permutations

import pytest
import torch

from vistok.metrics.retrieval import recall_at, retrieval


def test_recall_is_the_share_of_queries_whose_own_candidate_is_among_the_best() -> None:
    scores = torch.tensor([[0.9, 0.1, 0.2], [0.5, 0.4, 0.1], [0.3, 0.2, 0.1]])
    assert recall_at(scores, (1, 2, 3)) == pytest.approx({1: 1 / 3, 2: 2 / 3, 3: 1.0})


def test_both_directions_are_measured() -> None:
    images = torch.eye(3)
    texts = torch.tensor([[1.0, 0, 0], [0.9, 0.5, 0], [0, 0, 1.0]])
    found = retrieval(images, 7 * texts, ks=(1,))
    # Text 1 is nearer to image 0 than to its own; image 1 still likes text 1 best.
    assert found.pairs == 3 and found.image_to_text == {1: 1.0} and found.text_to_image == pytest.approx({1: 2 / 3})
    assert found.report()["text_to_image"] == found.text_to_image


def test_ties_count_as_a_random_order_of_equals_would_on_average() -> None:
    scores = torch.tensor([[0.5, 0.9, 0.5, 0.5], [0.1, 0.1, 0.1, 0.1], [0.0, 0.2, 0.3, 0.1], [0.9, 0.8, 0.7, 0.7]])
    exact = dict.fromkeys((1, 2, 3, 4), 0.0)
    orders = list(permutations(range(4)))
    for order in orders:
        for query, row in enumerate(scores.tolist()):
            ranked = sorted(order, key=lambda candidate: -row[candidate])
            for k in exact:
                exact[k] += (query in ranked[:k]) / (4 * len(orders))
    assert recall_at(scores, (1, 2, 3, 4)) == pytest.approx(exact)


def test_a_model_that_says_the_same_of_everything_is_at_chance() -> None:
    # Rounding must not decide: rows of one direction and other lengths score the same up to the last bits.
    lengths = torch.linspace(0.1, 3, 50)[:, None]
    same = torch.rand(1, 16, generator=torch.Generator().manual_seed(0)) * lengths
    assert retrieval(same, same.flip(0), ks=(1, 5)).image_to_text == pytest.approx({1: 1 / 50, 5: 5 / 50})


def test_equal_captions_share_their_place() -> None:
    texts = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    assert retrieval(texts, texts, ks=(1,)).image_to_text == pytest.approx({1: 2 / 3})


@pytest.mark.parametrize(
    ("images", "texts", "ks", "message"),
    [
        (torch.ones(2, 3), torch.ones(3, 3), (1,), r"expected two \[N, D\], got \[2, 3\] and \[3, 3\]"),
        (torch.ones(0, 3), torch.ones(0, 3), (1,), r"expected two \[N, D\]"),
        (torch.full((2, 3), float("nan")), torch.ones(2, 3), (1,), "expected finite images"),
        (torch.ones(2, 3), torch.zeros(2, 3), (1,), "finite texts of a length above 0"),
        (torch.ones(2, 3), torch.ones(2, 3), (0,), "expected every k >= 1"),
    ],
)
def test_bad_input_is_named(images: torch.Tensor, texts: torch.Tensor, ks: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        retrieval(images, texts, ks)
    with pytest.raises(ValueError, match=r"scores \[N, N\]"):
        recall_at(torch.ones(2, 3), (1,))
