import pytest
import torch
from timm.models.vision_transformer import VisionTransformer

from vistok.layers.adapted_mlp import add_adapters

IMAGES = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def make() -> VisionTransformer:
    torch.manual_seed(0)
    vit = VisionTransformer(img_size=16, patch_size=8, embed_dim=16, depth=2, num_heads=2, num_classes=0)
    return vit.eval()


def test_adapters_start_as_nothing_and_add_their_branch() -> None:
    vit = make()
    before = vit(IMAGES)
    adapters = add_adapters(vit, 4, scale=0.5)
    assert torch.equal(vit(IMAGES), before)
    one, x = adapters[0], torch.randn(2, 5, 16)
    torch.nn.init.normal_(one.up.weight)
    expected = one.mlp(x) + 0.5 * (x @ one.down.weight.T).relu() @ one.up.weight.T
    torch.testing.assert_close(one(x), expected)


def test_adapters_alone_learn_after_the_first_step() -> None:
    vit = make()
    adapters = add_adapters(vit, 4)
    for adapter in adapters:
        torch.nn.init.normal_(adapter.up.weight)
    vit(IMAGES).square().sum().backward()
    assert {name.split(".")[3] for name, value in vit.named_parameters() if value.grad is not None} == {"down", "up"}
    assert all(bool(value.grad.any()) for adapter in adapters for value in (adapter.down.weight, adapter.up.weight))


def test_adapters_are_added_once() -> None:
    vit = make()
    with pytest.raises(ValueError, match="at least 1, got 0"):
        add_adapters(vit, 0)
    add_adapters(vit, 1)
    with pytest.raises(ValueError, match="has adapters already"):
        add_adapters(vit, 1)
