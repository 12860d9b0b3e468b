"""Losses on perception tokens against values worked out by hand."""

import pytest
import torch

from vistok.lvlm.vocabulary import VocabMap
from vistok.train.perception_losses import (
    count_loss,
    distill_loss,
    marker_loss,
    reconstruction_loss,
    soft_merge,
    soft_targets,
)

CODES = VocabMap("depth", (7, 5, 6), begin=(3,), end=(4,))
VOCABULARY = 9


def logits(*shape):
    return torch.randn(*shape, VOCABULARY, generator=torch.Generator().manual_seed(0)).requires_grad_()


def test_distillation_from_codes_is_cross_entropy_on_their_ids():
    scores, codes = logits(2, 3), torch.tensor([[0, 1, 2], [2, 2, 0]])
    plain = torch.nn.functional.cross_entropy(scores.flatten(0, 1), CODES.to_ids(codes).flatten())
    assert torch.allclose(distill_loss(scores, codes, CODES), plain)
    one_hot = torch.nn.functional.one_hot(codes, 3).float()
    assert torch.allclose(distill_loss(scores, one_hot, CODES), plain)


def test_restricted_distillation_knows_the_family_alone():
    scores, codes = logits(4), torch.tensor([0, 1, 2, 1])
    own = torch.nn.functional.cross_entropy(scores[:, [7, 5, 6]], codes)
    assert torch.allclose(distill_loss(scores, codes, CODES, restrict=True), own)
    distill_loss(scores, codes, CODES, restrict=True).backward()
    assert scores.grad[:, [0, 1, 2, 3, 4, 8]].eq(0).all()


def test_soft_targets_are_a_softmax_of_squared_distances():
    book = torch.tensor([[0.0, 0.0], [2.0, 0.0], [0.0, 3.0]])
    found = soft_targets(torch.tensor([[1.0, 0.0]]), book, temperature=2.0)
    assert torch.allclose(found, torch.softmax(-torch.tensor([[1.0, 1.0, 10.0]]) / 2, 1), atol=1e-5)


def test_soft_targets_of_sixteen_bits_are_those_of_the_same_values_in_float32():
    vectors, book = torch.tensor([[1.0, 0.5]]), torch.tensor([[0.0, 0.0], [2.0, 0.0], [0.0, 3.0]])
    assert torch.equal(soft_targets(vectors.bfloat16(), book), soft_targets(vectors, book))


def test_the_reconstruction_loss_reaches_logits_at_span_positions_only():
    book = torch.randn(3, 4, generator=torch.Generator().manual_seed(1))
    scores, places, target = logits(2, 6), torch.tensor([[1, 2], [3, 4]]), torch.tensor([[0, 2], [1, 1]])
    decode = torch.nn.Linear(4, 5)
    loss = reconstruction_loss(scores, places, target, CODES, book, decode)
    loss.backward()
    touched = scores.grad.abs().sum(-1) > 0
    expected = torch.zeros(2, 6, dtype=torch.bool).scatter(1, places, True)
    assert torch.equal(touched, expected)
    assert scores.grad[..., [0, 1, 2, 3, 4, 8]].eq(0).all(), "only ids of codes count"


def test_sharp_logits_merge_to_the_hard_decode():
    book = torch.randn(3, 4, generator=torch.Generator().manual_seed(1))
    target = torch.tensor([[0, 2, 1]])
    sharp = torch.zeros(1, 3, VOCABULARY).scatter(2, CODES.to_ids(target)[..., None], 1e4)
    assert torch.equal(soft_merge(sharp, CODES, book), book[target])
    places = torch.arange(3)[None]
    assert reconstruction_loss(sharp, places, target, CODES, book, torch.nn.Identity()) == 0


def test_the_marker_loss_looks_at_markers_and_the_count_loss_at_how_many_codes_there_are():
    scores, labels = logits(1, 4), torch.tensor([[3, 7, 4, -100]])
    expected = torch.nn.functional.cross_entropy(scores[0, [0, 2]], torch.tensor([3, 4]))
    assert torch.allclose(marker_loss(scores, labels, CODES), expected)
    assert marker_loss(scores, torch.full((1, 4), -100), CODES) == 0
    sure = torch.full((1, 5, VOCABULARY), -1e4)
    sure[0, :3, 5] = sure[0, 3:, 4] = 1e4
    inside = torch.tensor([[True, True, True, True, False]])
    assert torch.isclose(count_loss(sure, inside, CODES, expected=4), torch.tensor((3 - 4) ** 2 / 4**2))


def test_shapes_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match=r"expected codes \[2, 3\] for logits \[2, 3, 9\], got \[3\]"):
        distill_loss(logits(2, 3), torch.tensor([0, 1, 2]), CODES)
    with pytest.raises(ValueError, match="a codebook of 3 rows, got 4"):
        soft_merge(logits(2), CODES, torch.zeros(4, 2))
    with pytest.raises(ValueError, match="places and target"):
        reconstruction_loss(
            logits(1, 3),
            torch.zeros(1, 2).long(),
            torch.zeros(1, 3).long(),
            CODES,
            torch.zeros(3, 2),
            torch.nn.Identity(),
        )
