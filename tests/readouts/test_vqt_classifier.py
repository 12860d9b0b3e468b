"""The linear head of VQT: where it starts, what it saves, and what is left of it when it is pruned."""

import copy
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from vistok.layers.group_lasso import select_features
from vistok.readouts.vqt import VQT
from vistok.readouts.vqt_classifier import VQTClassifier
from vistok.weights import load_weights

from .conftest import DEPTH, WIDTH, randomize, timm_vit

CLASSES = 5


@pytest.fixture
def model(vit: nn.Module) -> VQTClassifier:
    return VQTClassifier(VQT(vit, 2), CLASSES).eval()


def test_what_is_trained(model: VQTClassifier) -> None:
    features = WIDTH + DEPTH * 2 * WIDTH
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert trainable == DEPTH * 2 * WIDTH + CLASSES * (features + 1)
    assert torch.equal(model.head.bias, torch.full((CLASSES,), -math.log(99)))
    # He's rule for the fan out: standard deviation sqrt(2 / C).
    assert float(model.head.weight.detach().std()) == pytest.approx(math.sqrt(2 / CLASSES), rel=0.1)


def test_a_state_dict_has_flat_names_and_no_backbone(model: VQTClassifier, images: Tensor) -> None:
    assert set(model.state_dict()) == {"queries", "head.weight", "head.bias"}
    fresh = VQTClassifier(VQT(copy.deepcopy(model.vqt.vit), 2), CLASSES).eval()
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(fresh(images), model(images))
    inside = nn.ModuleDict({"model": model}).state_dict()
    assert set(inside) == {"model.queries", "model.head.weight", "model.head.bias"}
    assert "vit.norm.weight" in model.state_dict(full=True)


def test_a_pruned_head_gives_the_logits_of_the_dense_one_with_zeroed_columns(
    model: VQTClassifier, images: Tensor
) -> None:
    ids = select_features(model.head.weight, 0.3)
    dense = copy.deepcopy(model)
    dropped = torch.ones(dense.vqt.num_features, dtype=torch.bool).index_fill(0, ids, False)
    with torch.no_grad():
        dense.head.weight[:, dropped] = 0
    model.head.prune(ids, reset=False)
    torch.testing.assert_close(model(images), dense(images))
    fresh = VQTClassifier(VQT(model.vqt.vit, 2), CLASSES).eval()
    assert set(model.state_dict()) == {"queries", "head.weight", "head.bias", "select_ids"}
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(fresh(images), model(images))


def test_a_pruned_head_and_a_whole_backbone_come_back_from_a_file(
    model: VQTClassifier, images: Tensor, tmp_path: Path
) -> None:
    model.head.prune(select_features(model.head.weight, 0.3), reset=False)
    for full, seed in ((False, 0), (True, 5)):
        save_file(model.state_dict(full=full), tmp_path / "model.safetensors")
        fresh = VQTClassifier(VQT(randomize(timm_vit(), seed), 2), CLASSES).eval()
        load_weights(fresh, tmp_path)
        assert torch.equal(fresh(images), model(images))
    partial = model.vqt.state_dict(full=True)
    del partial["vit.norm.weight"]
    save_file(partial, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="missing norm.weight"):
        load_weights(VQT(model.vqt.vit, 2), tmp_path)


def test_layers_that_a_pruned_head_does_not_look_at_are_named_and_not_worked_out(
    model: VQTClassifier, images: Tensor
) -> None:
    start = WIDTH + 2 * WIDTH  # of the second layer's features
    ids = torch.cat([torch.arange(start), torch.arange(start + 2 * WIDTH, model.vqt.num_features)])
    expected = copy.deepcopy(model)
    with torch.no_grad():
        expected.head.weight[:, start : start + 2 * WIDTH] = 0
    assert model.dead_layers == []
    model.head.prune(ids, reset=False)
    assert model.dead_layers == [1]
    calls: list[int] = []
    handle = model.vqt.vit.blocks[1].attn.proj.register_forward_hook(lambda *_: calls.append(1))
    torch.testing.assert_close(model(images), expected(images))
    handle.remove()
    assert len(calls) == 1, "the backbone's own pass and no queries"
    model(images).sum().backward()
    assert float(model.vqt.queries.grad[1].abs().max()) == 0.0 < float(model.vqt.queries.grad[0].abs().max())
