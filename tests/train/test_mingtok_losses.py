"""The losses of MingTok on values small enough to work out, and what a hidden patch may and may not touch."""

from typing import Any

import pytest
import torch
from torch import Tensor

import vistok
from vistok.tokenizers.mingtok import MingTok
from vistok.train.mingtok_losses import Heads, Targets, masked_step, pixel_loss

TINY: dict[str, Any] = vistok.info("tokenizer", "mingtok_nano").tiny


@pytest.fixture
def patches() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    prediction, target = torch.randn(2, 2, 6, 12, generator=generator)
    return prediction, target


def test_plain_l1_leaves_out_hidden_patches(patches: tuple[Tensor, Tensor]) -> None:
    prediction, target = patches
    masked = torch.zeros(2, 6, dtype=torch.bool)
    masked[0, 1:] = True
    loss = pixel_loss("L1-plain")
    error = (prediction - target).abs()
    torch.testing.assert_close(loss(prediction, target), error.mean())
    torch.testing.assert_close(loss(prediction, target, masked=masked), torch.cat([error[0, :1], error[1]]).mean())
    assert loss(prediction, target, masked=torch.ones_like(masked)) == 0


def test_the_other_losses_are_their_formulas(patches: tuple[Tensor, Tensor]) -> None:
    prediction, target = patches
    stretched = (prediction - prediction.min()) / (prediction.max() - prediction.min()) * 2 - 1
    torch.testing.assert_close(pixel_loss("L1")(prediction, target), (stretched - target).abs().mean())
    torch.testing.assert_close(pixel_loss("L1-tanh")(prediction, target), (prediction.tanh() - target).abs().mean())
    torch.testing.assert_close(pixel_loss("L2")(prediction, target), (prediction - target).square().mean())
    normed = (target - target.mean(-1, keepdim=True)) / (target.var(-1, keepdim=True) + 1e-6).sqrt()
    torch.testing.assert_close(
        pixel_loss("L2")(prediction, target, normalize=True), (prediction - normed).square().mean()
    )
    with pytest.raises(ValueError, match="L1-plain, L1, L1-tanh, L2, got 'L3'"):
        pixel_loss("L3")


def test_a_rescaled_loss_of_a_prediction_without_range_is_finite_and_has_a_gradient() -> None:
    prediction = torch.full((1, 4, 12), 0.3, requires_grad=True)
    loss = pixel_loss("L1")(prediction, torch.zeros(1, 4, 12))
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss == 1 and prediction.grad is not None and bool(prediction.grad.isfinite().all())


def test_a_hidden_patch_reaches_no_stage_and_its_pixels_no_loss() -> None:
    torch.manual_seed(0)
    model = MingTok(**TINY)
    heads = Heads(model, 3, 3)
    images = torch.rand(2, 3, 16, 24)
    masked = torch.zeros(2, 6, dtype=torch.bool)
    masked[0, 4] = True
    other = images.clone()
    other[0, :, 8:16, 8:16] = 0.25  # patch 4 of 2 x 3
    targets = Targets(torch.randn(2, 6, 3), torch.randn(2, 6, 3))
    one, two = (masked_step(model, heads, pictures, masked, targets) for pictures in (images, other))
    assert torch.equal(one.images, two.images)
    for name, value in one.terms.items():
        torch.testing.assert_close(value, two.terms[name], rtol=0, atol=1e-6)
    shown = masked_step(model, heads, other, torch.zeros_like(masked), targets)
    assert not torch.allclose(shown.images, one.images)
    assert shown.terms["latent"] == 0 == shown.terms["semantic"]


def test_each_feature_loss_trains_the_stages_up_to_its_tokens() -> None:
    torch.manual_seed(0)
    model = MingTok(**TINY)
    heads = Heads(model, 3, 5)
    targets = Targets(torch.randn(2, 6, 3), torch.randn(2, 6, 5))
    masked = torch.arange(6).expand(2, -1) < 3
    step = masked_step(model, heads, torch.rand(2, 3, 16, 24), masked, targets)

    def reached(term: str) -> set[str]:
        model.zero_grad()
        step.terms[term].backward(retain_graph=True)
        return {name for name, part in model.named_children() if any(p.grad is not None for p in part.parameters())}

    encoder, decoder = {"low_level_encoder"}, {"semantic_decoder"}
    assert reached("latent") == encoder
    assert reached("semantic") == encoder | decoder
    assert reached("pixels") == encoder | decoder | {"sem_to_pix", "pixel_decoder"}
    assert heads.mask_token.grad is not None and heads.mask_token.grad.abs().sum() > 0


def test_without_a_teacher_there_is_no_head_and_no_term() -> None:
    model = MingTok(**TINY)
    heads = Heads(model, None, 4)
    step = masked_step(model, heads, torch.rand(1, 3, 8, 8), torch.ones(1, 1, dtype=torch.bool), Targets())
    assert heads.latent is None and set(step.terms) == {"pixels"}
