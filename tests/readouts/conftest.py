"""Small backbones with random weights of every kind that readouts sit on."""

from collections.abc import Callable
from typing import Any

import open_clip
import pytest
import torch
from timm.layers.attention import Attention
from timm.models.vision_transformer import ResPostBlock, VisionTransformer
from torch import Tensor, nn

SIDE, PATCH, WIDTH, DEPTH, HEADS = 16, 8, 32, 3, 2


class Gated(Attention):
    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options, gated=True)


def timm_vit(**options: Any) -> VisionTransformer:
    torch.manual_seed(0)
    sizes = {"img_size": SIDE, "patch_size": PATCH, "embed_dim": WIDTH, "depth": DEPTH, "num_heads": HEADS}
    return VisionTransformer(**{**sizes, "num_classes": 0, **options})


def open_clip_tower() -> nn.Module:
    torch.manual_seed(0)
    vision = {"layers": DEPTH, "width": WIDTH, "head_width": WIDTH // HEADS, "patch_size": PATCH, "image_size": SIDE}
    text = {"context_length": 1, "vocab_size": 2, "width": 2, "heads": 1, "layers": 1}
    return open_clip.CLIP(24, vision, text).visual


BACKBONES: dict[str, Callable[[], nn.Module]] = {
    "block": timm_vit,
    "qk_norm": lambda: timm_vit(qk_norm=True, init_values=0.5),
    "layer_scale": lambda: timm_vit(init_values=0.5),
    "registers": lambda: timm_vit(reg_tokens=4, pre_norm=True),
    "no_class_token": lambda: timm_vit(class_token=False, global_pool="avg"),
    "map_pool": lambda: timm_vit(class_token=False, global_pool="map"),
    "post_norm": lambda: timm_vit(block_fn=ResPostBlock, init_values=0.5),
    "gated": lambda: timm_vit(attn_layer=Gated, scale_attn_norm=True),
    "open_clip": open_clip_tower,
}


def randomize(vit: nn.Module, seed: int = 0) -> nn.Module:
    """Every parameter away from where it starts, so that none of them can be left out unseen."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in vit.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return vit.eval()


@pytest.fixture
def vit() -> nn.Module:
    return randomize(timm_vit())


@pytest.fixture
def images() -> Tensor:
    return torch.randn(3, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
