import copy

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from vistok.layers.visual_prompts import add_visual_prompts

IMAGES = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def make(**options) -> VisionTransformer:
    torch.manual_seed(0)
    sizes = {"img_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 3, "num_heads": 2, "num_classes": 0}
    return VisionTransformer(**{**sizes, **options}).eval()


def by_hand(vit: VisionTransformer, prompts: Tensor, images: Tensor) -> Tensor:
    """The same forward with the prompts put in and taken out by hand."""
    x = vit.norm_pre(vit._pos_embed(vit.patch_embed(images)))
    first = vit.num_prefix_tokens
    for layer, block in enumerate(vit.blocks):
        if layer == 0 or len(prompts) > 1:
            behind = x[:, first:] if layer == 0 else x[:, first + prompts.shape[1] :]
            x = torch.cat([x[:, :first], prompts[layer].expand(len(x), -1, -1), behind], 1)
        x = block(x)
    return vit.norm(torch.cat([x[:, :first], x[:, first + prompts.shape[1] :]], 1))


@pytest.mark.parametrize("deep", [True, False])
@pytest.mark.parametrize("options", [{}, {"reg_tokens": 2}, {"class_token": False, "global_pool": "avg"}])
def test_prompts_stand_behind_the_prefix_and_leave_at_the_end(deep: bool, options) -> None:
    vit = make(**options)
    plain = copy.deepcopy(vit)
    prompts = add_visual_prompts(vit, 4, deep=deep)
    assert prompts.prompts.shape == (3 if deep else 1, 4, 16)
    found = vit.forward_features(IMAGES)
    torch.testing.assert_close(found, by_hand(plain, prompts.prompts, IMAGES))
    assert found.shape == plain.forward_features(IMAGES).shape


def test_prompts_alone_learn_and_every_block_has_its_own() -> None:
    vit = make()
    add_visual_prompts(vit, 4)
    vit(IMAGES).square().sum().backward()
    learning = [name for name, value in vit.named_parameters() if value.grad is not None]
    assert learning == ["visual_prompts.prompts"]
    # The class token reads the prompts of every block.
    assert bool((vit.visual_prompts.prompts.grad.abs().sum((1, 2)) > 0).all())


def test_a_copy_has_prompts_of_its_own() -> None:
    vit = make()
    add_visual_prompts(vit, 4)
    twin = copy.deepcopy(vit)
    before = vit(IMAGES)
    with torch.no_grad():
        twin.visual_prompts.prompts.zero_()
    assert torch.equal(vit(IMAGES), before) and not torch.equal(twin(IMAGES), before)


def test_prompts_are_put_in_once() -> None:
    vit = make()
    with pytest.raises(ValueError, match="at least 1, got 0"):
        add_visual_prompts(vit, 0)
    add_visual_prompts(vit, 1)
    with pytest.raises(ValueError, match="has prompts already"):
        add_visual_prompts(vit, 1)
