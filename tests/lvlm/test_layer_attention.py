"""Rows of attention worked out beside a layer equal those that the eager layer has."""

from typing import Any

import pytest
import torch
from torch import Tensor

import vistok.lvlm
from vistok.protocols import LayerCut, LayerPlan, LayerView


class Asking:
    """A pruner that keeps everything and writes down the attention of chosen rows."""

    cannot: frozenset[str] = frozenset()

    def __init__(self, layer: int) -> None:
        self.plan = LayerPlan(prune_after=(layer,), needs=frozenset({"attention", "next_attention"}))
        self.seen: list[tuple[Tensor, Tensor]] = []
        self.keys: list[Tensor] = []

    def begin(self, view: LayerView, budget: Any = None) -> "Asking":
        return self

    def observe(self, view: LayerView) -> None:
        raise AssertionError("its plan observes nothing")

    def prune(self, view: LayerView) -> LayerCut | None:
        assert view.attention is not None and view.next_attention is not None
        for rows in (view.instruction, view.visual, view.text, torch.zeros_like(view.valid)):
            self.seen.append((view.attention(rows), view.next_attention(rows)))
        self.keys.append(view.next_attention.keys())
        return None


@pytest.mark.parametrize("layer", [0, 2])
@torch.no_grad()
def test_rows_are_those_of_the_eager_layers(each_class: Any, layer: int) -> None:
    model, inputs = each_class.model, each_class.inputs(texts=(4, 7), images=2)
    asking = Asking(layer)
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        with vistok.lvlm.prune(model, asking):
            out = model(**inputs, output_attentions=True, use_cache=True)
    finally:
        model.set_attn_implementation(before)
    image = inputs["input_ids"] == model.config.image_token_id
    valid = inputs["attention_mask"].bool()
    behind = image.flip(1).cumsum(1).flip(1) == 0
    masks = (behind, image, valid & ~image & (image.cumsum(1) > 0), torch.zeros_like(image))
    for rows, found in zip(masks, asking.seen, strict=True):
        for number, mean in zip((layer, layer + 1), found, strict=True):
            attention = out.attentions[number].mean(1)
            expected = (attention * rows[..., None]).sum(1) / rows.sum(1, keepdim=True).clamp(min=1)
            torch.testing.assert_close(mean, expected, rtol=1e-5, atol=1e-6)
    cached = out.past_key_values.layers[layer + 1].keys
    torch.testing.assert_close(asking.keys[0], cached, rtol=1e-5, atol=1e-6)


class Merging:
    """Replaces the visual tokens by the mean of each half."""

    cannot: frozenset[str] = frozenset()
    plan = LayerPlan(prune_after=(1,))

    def begin(self, view: LayerView, budget: Any = None) -> "Merging":
        return self

    def observe(self, view: LayerView) -> None:
        raise AssertionError("its plan observes nothing")

    def prune(self, view: LayerView) -> LayerCut:
        half = view.slots.shape[1] // 2
        values = view.hidden.gather(1, view.slots[..., None].expand(-1, -1, view.hidden.shape[2]))
        means = torch.stack([values[:, :half].mean(1), values[:, half:].mean(1)], 1)
        return LayerCut(torch.tensor([[0, half]]).expand(len(values), 2), embeds=means)


@torch.no_grad()
def test_merged_hidden_states_take_the_place_of_the_kept_ones(llava: Any) -> None:
    inputs = llava.inputs(texts=(5, 5))
    states: list[Tensor] = []
    layers = llava.model.model.language_model.layers
    with vistok.lvlm.prune(llava.model, Merging()) as p:
        handle = layers[2].register_forward_pre_hook(lambda module, args: states.append(args[0]))
        before = layers[1].register_forward_hook(lambda module, args, output: states.append(output))
        try:
            llava.model(**inputs)
        finally:
            handle.remove()
            before.remove()
    image = inputs["input_ids"] == llava.model.config.image_token_id
    values = states[0][image].reshape(2, 16, -1)
    kept = image.gather(1, p.source)
    expected = torch.stack([values[:, :8].mean(1), values[:, 8:].mean(1)], 1)
    assert p.report().visual == (16, 16, 2, 2)
    torch.testing.assert_close(states[1][kept].reshape(2, 2, -1), expected)
