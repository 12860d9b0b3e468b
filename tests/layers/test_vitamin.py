"""ViTamin against timm's parts of it, and the projections of UniTok against attention written out head by head."""

from functools import partial
from typing import Any

import pytest
import torch
from timm.layers import HybridEmbed
from timm.models.vision_transformer import VisionTransformer
from timm.models.vitamin import GeGluMlp, MbConvStages, VitCfg
from torch import Tensor

from vistok.layers.vitamin import AttentionProjection, ViTaminEncoder


class TanhGeGlu(GeGluMlp):  # type: ignore[misc]
    """timm's, with the GELU of UniTok's authors."""

    def __init__(self, *args: Any, **options: Any) -> None:
        options["act_layer"] = "gelu_tanh"
        options.pop("norm_layer", None)
        super().__init__(*args, **options)


@torch.no_grad()
def test_the_encoder_is_timms_with_the_tanh_form_of_gelu() -> None:
    torch.manual_seed(0)
    ours = ViTaminEncoder((8, 16, 32), (2, 3), 2, 4).eval()
    stages = MbConvStages(cfg=VitCfg(embed_dim=(8, 16, 32), depths=(2, 3, 1), stem_width=8))
    theirs = VisionTransformer(
        img_size=64, patch_size=1, embed_layer=partial(HybridEmbed, backbone=stages, proj=False), embed_dim=32, depth=2,
        num_heads=4, mlp_layer=TanhGeGlu, mlp_ratio=2.0, class_token=False, pos_embed="none", global_pool="",
        fc_norm=False, num_classes=0,
    ).eval()  # fmt: skip
    state = {name: value + 0.05 * torch.randn_like(value) for name, value in ours.state_dict().items()}
    ours.load_state_dict(state)
    theirs.load_state_dict(state)
    images = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(ours(images).flatten(2).transpose(1, 2), theirs(images), rtol=0, atol=2e-5)


def attention_by_hand(layer: Any, x: Tensor, heads: int, *, mean: bool) -> Tensor:
    width = len(layer.q_bias)
    q = x @ layer.qkv.weight[:width].T + layer.q_bias
    k = x @ layer.qkv.weight[width : 2 * width].T
    v = x @ layer.qkv.weight[2 * width :].T + layer.v_bias
    size = width // heads
    found = []
    for head in range(heads):
        part = slice(head * size, (head + 1) * size)
        weights = torch.softmax(q[..., part] @ k[..., part].transpose(1, 2) / size**0.5, -1)
        found.append(weights @ v[..., part])
    out: Tensor = layer.proj(torch.stack(found).mean(0) if mean else torch.cat(found, -1))
    return out


@torch.no_grad()
@pytest.mark.parametrize(("inputs", "outputs"), [(12, 4), (4, 12)])
def test_a_projection_is_attention_plus_a_linear_map_and_a_gated_mlp(inputs: int, outputs: int) -> None:
    torch.manual_seed(0)
    layer: Any = AttentionProjection(inputs, outputs).eval()
    for parameter in layer.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))
    x = torch.randn(2, 5, inputs)
    seen = attention_by_hand(layer.attn, layer.norm1(x), 3, mean=inputs > outputs)
    y = layer.proj(layer.norm3(x)) + seen
    n = layer.mlp.norm(layer.norm2(y))
    gated = torch.nn.functional.gelu(layer.mlp.w0(n), approximate="tanh") * layer.mlp.w1(n)
    torch.testing.assert_close(layer(x), y + layer.mlp.w2(gated), rtol=0, atol=1e-5)


def test_widths_must_divide_each_other() -> None:
    with pytest.raises(ValueError, match="got 12 and 5"):
        AttentionProjection(12, 5)
