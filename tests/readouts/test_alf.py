"""ALF: attention over the class and mean tokens of all layers, checked by hand."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vistok.readouts.alf import Alf

from .conftest import BACKBONES, randomize


def test_it_attends_to_class_and_mean_tokens_of_every_layer(vit: Any, images: Tensor) -> None:
    alf = Alf(vit, 2, heads=4, layers=[0, -1]).eval()
    with torch.no_grad():
        x = vit.norm_pre(vit._pos_embed(vit.patch_embed(images)))
        summaries = []
        for layer, block in enumerate(vit.blocks):
            x = block(x)
            if layer != 1:
                summaries += [x[:, 0], x[:, 1:].mean(1)]
    heard = nn.functional.layer_norm(torch.stack(summaries, 1), (32,))
    expected, weights = alf.attention(alf.queries.expand(3, -1, -1), heard, heard)
    out = alf(images)
    torch.testing.assert_close(out.features, expected.flatten(1))
    torch.testing.assert_close(alf.layer_weights(images), weights.unflatten(2, (2, 2)).sum(-1))
    torch.testing.assert_close(alf.layer_weights(images).sum(-1), torch.ones(3, 2))


@pytest.mark.parametrize(("name", "summaries"), [("no_class_token", 3), ("registers", 6), ("open_clip", 6)])
def test_backbones_of_every_kind(name: str, summaries: int, images: Tensor) -> None:
    alf = Alf(randomize(BACKBONES[name]())).eval()
    seen: list[int] = []
    handle = alf.attention.register_forward_pre_hook(lambda _module, args: seen.append(args[1].shape[1]))
    alf(images)
    handle.remove()
    assert seen == [summaries]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_tokens": 0}, "num_tokens: expected at least 1"),
        ({"heads": 5}, "heads: expected a divisor of the width 32, got 5"),
        ({"attention_dropout": 1.0}, "attention_dropout: expected"),
        ({"layers": [7]}, "alf: expected layers to name different blocks"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(vit: nn.Module, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Alf(vit, **settings)
