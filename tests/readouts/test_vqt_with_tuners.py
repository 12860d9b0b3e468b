"""VQT beside tuners that change the features: both learn, and the queries see the blocks as they are tuned."""

import copy
from typing import Any

import peft
import pytest
import torch
from torch import Tensor, nn

from vistok.layers.adapted_mlp import AdaptedMlp, add_adapters
from vistok.layers.visual_prompts import add_visual_prompts
from vistok.readouts.vqt import VQT
from vistok.readouts.vqt_classifier import VQTClassifier

from .conftest import BACKBONES, PATCH, SIDE, randomize, timm_vit

TUNERS = ("lora", "vpt", "adaptformer")


def tuned(name: str) -> nn.Module:
    """A frozen backbone with a tuner inside that has left its start."""
    vit = randomize(timm_vit()).requires_grad_(False)
    if name == "lora":
        config = peft.LoraConfig(r=4, target_modules=["qkv"], init_lora_weights=False)
        peft.inject_adapter_in_model(config, vit)
    elif name == "vpt":
        add_visual_prompts(vit, 5)
    else:
        for adapter in add_adapters(vit, 4, scale=1.0):
            nn.init.normal_(adapter.up.weight, std=0.1)
    return vit.eval()


def learned(vit: nn.Module) -> dict[str, nn.Parameter]:
    return {name: value for name, value in vit.named_parameters() if value.requires_grad}


@pytest.mark.parametrize("name", TUNERS)
def test_both_learn_together(name: str, images: Tensor) -> None:
    vqt = VQT(tuned(name), 2, backbone_grad=True)
    assert learned(vqt.vit), "nothing froze the tuner"
    vqt(images).features.mul(torch.arange(vqt.num_features)).sum().backward()
    assert vqt.queries.grad is not None and bool((vqt.queries.grad.abs().sum(-1) > 0).all())
    assert all(value.grad is not None and bool(value.grad.any()) for value in learned(vqt.vit).values())
    assert all(value.grad is None for value in vqt.vit.parameters() if not value.requires_grad)


@pytest.mark.parametrize("name", TUNERS)
def test_queries_pass_through_the_tuned_blocks_and_so_do_their_gradients(name: str, images: Tensor) -> None:
    found = []
    for mode in ("masked", "auto"):
        torch.manual_seed(0)
        vqt = VQT(tuned(name).double(), 2, backbone_grad=True, kv_mode=mode, query_dropout=0.0)
        out = vqt(images.double())
        out.features.mul(torch.arange(vqt.num_features)).sum().backward()
        found.append((out.queries.detach(), [value.grad for value in learned(vqt.vit).values()]))
    torch.testing.assert_close(found[1][0], found[0][0], atol=1e-12, rtol=0)
    torch.testing.assert_close(found[1][1], found[0][1], atol=1e-11, rtol=0)


def test_queries_pass_through_lora_inside_the_attention_of_open_clip(images: Tensor) -> None:
    tower = randomize(BACKBONES["open_clip"]())
    config = peft.LoraConfig(r=4, target_modules=["attn"], init_lora_weights=False)
    vqt = VQT(peft.inject_adapter_in_model(config, tower).eval(), 2, backbone_grad=True, query_dropout=0.0)
    found = vqt(images).queries
    merged = copy.deepcopy(tower)
    for block in merged.transformer.resblocks:
        block.attn = block.attn.unload_and_optionally_merge_module(True, False, None)
    plain = VQT(merged, 2, query_dropout=0.0)
    plain.load_state_dict({"queries": vqt.queries})
    torch.testing.assert_close(found, plain(images).queries, atol=1e-4, rtol=1e-4)
    found.square().sum().backward()
    assert all(value.grad is not None and bool(value.grad.any()) for value in learned(tower).values())


def test_a_query_passes_through_the_adapter_of_its_block(images: Tensor) -> None:
    vqt = VQT(tuned("adaptformer"), 2).eval()
    before = vqt(images)
    last = vqt.vit.blocks[-1].mlp
    assert isinstance(last, AdaptedMlp)
    last.scale = 0.0
    after = vqt(images)
    assert torch.equal(before.queries[:, :-1], after.queries[:, :-1])
    assert not torch.equal(before.queries[:, -1], after.queries[:, -1])


def test_prompts_are_seen_unless_they_are_excluded(images: Tensor) -> None:
    vit = tuned("vpt")
    seeing, blind = VQT(vit, 2).eval(), VQT(vit, 2, exclude_prompts=True).eval()
    blind.load_state_dict(seeing.state_dict())
    tokens = (SIDE // PATCH) ** 2 + 1
    for mode in ("folded", "kv", "qkv", "masked"):
        counts = [vqt.capture(images, mode=mode).kept[0].tensors[0].shape[-2] for vqt in (seeing, blind)]
        assert counts == [tokens + 5, tokens]
    assert not torch.allclose(seeing(images).queries, blind(images).queries)
    without = VQT(randomize(timm_vit()), 2).eval()
    without.load_state_dict(seeing.state_dict())
    # Before the first block nothing has met a prompt yet.
    torch.testing.assert_close(blind(images).queries[:, 0], without(images).queries[:, 0])


@pytest.mark.parametrize("name", TUNERS)
def test_what_the_tuner_learned_is_in_the_state_dict(name: str, images: Tensor) -> None:
    model = VQTClassifier(VQT(tuned(name), 2, backbone_grad=True), 3).eval()
    expected = {f"vit.{own}" for own in learned(model.vqt.vit)} | {"queries", "head.weight", "head.bias"}
    assert set(model.state_dict()) == expected
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for value in (*learned(twin.vqt.vit).values(), twin.vqt.queries, twin.head.weight):
            value.zero_()
    assert not torch.equal(twin(images), model(images))
    twin.load_state_dict(model.state_dict())
    assert torch.equal(twin(images), model(images))


def test_without_backbone_grad_a_tuner_is_frozen_with_the_rest(images: Tensor) -> None:
    vqt: Any = VQT(tuned("lora"), 2)
    assert not learned(vqt.vit) and vqt.capture(images).kept[0].mode == "kv"
    with pytest.raises(TypeError, match="plain linear keys"):
        VQT(vqt.vit, 2, kv_mode="folded")
