"""Blocks with timm's names: what timm's own block gives, in both attention paths."""

import pytest
import torch

from vistok.layers.vit_block import VitBlock


def test_it_is_the_block_of_timm_key_by_key_and_number_by_number() -> None:
    from timm.models.vision_transformer import Block

    theirs = Block(
        24, num_heads=3, mlp_ratio=4, qkv_bias=True, norm_layer=lambda width: torch.nn.LayerNorm(width, 1e-6)
    )
    generator = torch.Generator().manual_seed(0)
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.3, generator=generator)
    ours = VitBlock(24, heads=3)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 7, 24, generator=generator)
    with torch.no_grad():
        expected = theirs.eval()(x)
        torch.testing.assert_close(ours(x), expected)
    torch.testing.assert_close(ours(x).detach(), expected)


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(ValueError, match="heads that divide width=24, got heads=5"):
        VitBlock(24, heads=5)
