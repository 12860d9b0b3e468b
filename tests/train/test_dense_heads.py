import pytest
import torch

from vistok.data.scenes import render
from vistok.data.scenes.patch_truth import CLASS_SIZES, FLAGS, NUMBERS, patch_truth
from vistok.train.dense_heads import DenseHeads, GlobalHead, norm_error


def pattern(places):
    """The pattern that norms are taught, found from outside: flat norms fail it by exactly its own variance."""
    log_norms = torch.zeros(1, places, 1, requires_grad=True)
    norm_error(log_norms.exp()).backward()
    return -log_norms.grad


def test_flat_norms_have_error_one_and_the_pattern_has_none():
    assert norm_error(torch.ones(2, 36, 1)).item() == pytest.approx(35 / 36, rel=1e-4)
    wanted = pattern(36)
    wanted = 0.1 * (wanted - wanted.mean()) / wanted.std()
    for scale in (1.0, 7.0):
        assert norm_error(scale * wanted.exp()).item() == pytest.approx(0, abs=1e-6)


def test_the_pattern_is_the_same_for_every_picture_and_says_nothing_of_what_is_there():
    tokens = torch.randn(5, 36, 8, generator=torch.Generator().manual_seed(0))
    together = norm_error(tokens)
    alone = torch.stack([norm_error(item[None]) for item in tokens]).mean()
    torch.testing.assert_close(together, alone)


def test_heads_can_say_everything_and_are_rewarded_for_it():
    truth = patch_truth([render(3), render(4)], 8)
    parts = [torch.nn.functional.one_hot(truth.classes[name], size) * 40.0 for name, size in CLASS_SIZES.items()]
    parts.append((torch.stack([truth.flags[name] for name in FLAGS], -1) * 2 - 1) * 40)
    parts.append(truth.numbers)
    oracle = torch.cat(parts, dim=-1)
    heads = DenseHeads(oracle.shape[-1])
    with torch.no_grad():
        heads.linear.weight.copy_(torch.eye(oracle.shape[-1]))
        heads.linear.bias.zero_()
    assert oracle.shape[-1] == sum(CLASS_SIZES.values()) + len(FLAGS) + NUMBERS
    assert heads.loss(oracle, truth).item() == pytest.approx(0, abs=1e-4)
    assert heads.loss(torch.zeros_like(oracle), truth).item() > 5


def test_the_class_token_learns_pairs_and_count():
    truth = patch_truth([render(3), render(4)], 8)
    head = GlobalHead(8)
    before = head.loss(torch.ones(2, 8), truth)
    before.backward()
    assert head.linear.weight.grad.abs().sum() > 0 and before.item() > 2
