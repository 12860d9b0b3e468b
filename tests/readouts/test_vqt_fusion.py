"""The fused readout of VQT by hand, and what it cannot be combined with."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vistok.readouts.vqt import VQT
from vistok.readouts.vqt_classifier import VQTClassifier
from vistok.readouts.vqt_fusion import VQTFusion

from .conftest import BACKBONES, WIDTH


def test_its_feature_is_the_first_row_of_one_block_over_all_summaries(vit: nn.Module, images: Tensor) -> None:
    fusion = VQTFusion(vit, 2).eval()
    assert fusion.num_features == WIDTH
    out = fusion(images)
    rows = torch.cat([out.pooled[:, None], out.queries.flatten(1, 2)], 1)
    rows = rows / rows.norm(dim=2, keepdim=True)
    torch.testing.assert_close(out.features, fusion.fusion(rows)[:, 0])
    plain = VQT(vit, 2).eval()
    plain.load_state_dict({"queries": fusion.queries})
    assert torch.equal(plain(images).queries, out.queries)


def test_every_layer_has_an_mlp_and_an_embedding_of_its_own(vit: nn.Module, images: Tensor) -> None:
    fusion = VQTFusion(vit, layer_mlp=True).eval()
    assert not fusion.layer_embed.any() and fusion.layer_embed.shape == (1, 4, WIDTH)
    nn.init.normal_(fusion.layer_embed)
    out = fusion(images)
    normal = nn.functional.normalize
    own = [mlp(normal(out.queries[:, layer, 0], dim=1)) for layer, mlp in enumerate(fusion.layer_mlps)]
    rows = torch.stack([normal(out.pooled, dim=1), *own], 1) + fusion.layer_embed
    torch.testing.assert_close(out.features, fusion.fusion(rows)[:, 0])


def test_a_classifier_on_it_learns(vit: nn.Module, images: Tensor) -> None:
    model = VQTClassifier(VQTFusion(vit, 2), 3)
    model(images).sum().backward()
    assert all(value.grad is not None for value in model.parameters() if value.requires_grad)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"readout": "mean"}, TypeError, "expected no readout"),
        ({"heads": 5}, ValueError, "heads: expected a divisor of the width 32"),
        ({"layer_mlp": True, "num_tokens": 2}, ValueError, "one query per block, got 2"),
    ],
)
def test_settings_that_do_not_fit_are_refused(
    vit: nn.Module, settings: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        VQTFusion(vit, **settings)
    with pytest.raises(ValueError, match="width 32, got 24"):
        VQTFusion(BACKBONES["open_clip"]())
    with pytest.raises(ValueError, match="nothing to skip"):
        VQTFusion(vit)(torch.zeros(1, 3, 16, 16), skip=[0])
