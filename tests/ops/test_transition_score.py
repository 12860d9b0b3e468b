"""Transition score: the two formulas of TransPrune, padding, zero vectors, mistakes."""

import pytest
import torch
from torch import Tensor

from vistok.ops import transition_score, transition_stats


def random(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_it_is_the_authors_formula() -> None:
    inputs, outputs = random(0, 2, 9, 16), random(1, 2, 9, 16)
    magnitude = outputs.norm(dim=-1) / inputs.norm(dim=-1)
    turn = torch.exp(1 - torch.cosine_similarity(inputs, outputs, dim=-1))
    expected = turn / turn.sum(-1, keepdim=True) * magnitude
    torch.testing.assert_close(transition_score(transition_stats(inputs, outputs)), expected)


def test_the_papers_variant_weighs_image_tokens_by_the_angle_to_the_line() -> None:
    inputs, outputs = random(0, 1, 9, 16), random(1, 1, 9, 16)
    image = torch.arange(9)[None] % 3 > 0
    cosine = torch.cosine_similarity(inputs, outputs, dim=-1).abs()[image]
    expected = (1 - cosine).softmax(0) * (outputs.norm(dim=-1) / inputs.norm(dim=-1))[image]
    found = transition_score(transition_stats(inputs, outputs), image, variant="paper")
    torch.testing.assert_close(found[image], expected)
    assert not found[~image].any()
    flipped = transition_score(transition_stats(inputs, -outputs), image, variant="paper")
    assert torch.equal(found, flipped)


def test_a_module_that_changes_nothing_gives_equal_weights() -> None:
    inputs = random(0, 1, 5, 8)
    torch.testing.assert_close(transition_score(transition_stats(inputs, inputs)), torch.full((1, 5), 0.2))


@pytest.mark.parametrize("variant", ["code", "paper"])
def test_padding_changes_nothing(variant: str) -> None:
    inputs, outputs = random(0, 1, 9, 16), random(1, 1, 9, 16)
    alone = transition_score(transition_stats(inputs[:, :6], outputs[:, :6]), variant=variant)
    inputs[:, 6:] = torch.nan
    padded = transition_score(transition_stats(inputs, outputs), torch.arange(9)[None] < 6, variant=variant)
    torch.testing.assert_close(padded[:, :6], alone)
    assert not padded[:, 6:].any()


def test_zero_vectors_and_empty_samples_score_zero() -> None:
    inputs, outputs = random(0, 1, 4, 3), random(1, 1, 4, 3)
    inputs[0, 1], outputs[0, 2] = 0, 0
    stats = transition_stats(inputs, outputs)
    assert (transition_score(stats) > 0).tolist() == [[True, False, False, True]]
    assert transition_score(stats, torch.zeros(1, 4, dtype=torch.bool)).tolist() == [[0, 0, 0, 0]]


def test_gradients_are_finite_beside_zero_vectors() -> None:
    inputs, outputs = random(0, 1, 4, 3).requires_grad_(), random(1, 1, 4, 3)
    outputs[0, 2] = 0
    (gradient,) = torch.autograd.grad(transition_score(transition_stats(inputs, outputs)).sum(), inputs)
    assert bool(gradient.isfinite().all()) and bool(gradient[0, 0].any())


def test_mistakes_are_named() -> None:
    stats = transition_stats(random(0, 1, 4, 3), random(1, 1, 4, 3))
    with pytest.raises(ValueError, match="'code' or 'paper', got 'both'"):
        transition_score(stats, variant="both")
    with pytest.raises(ValueError, match=r"bool \[1, 4\], got torch.bool \[1, 5\]"):
        transition_score(stats, torch.ones(1, 5, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"bool \[1, 4\], got torch.float32"):
        transition_score(stats, torch.ones(1, 4))
