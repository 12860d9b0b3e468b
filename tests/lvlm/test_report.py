"""The report counts what the prompt really cost."""

from collections.abc import Callable
from typing import Any

import torch

import vistok
import vistok.lvlm
from vistok.lvlm import flops


@torch.no_grad()
def test_it_counts_tokens_cache_and_operations(llava: Any, stepwise: Callable[..., Any]) -> None:
    inputs = llava.inputs(texts=(4, 9))
    total = inputs["input_ids"].shape[1]
    with vistok.lvlm.prune(llava.model, ["uniform", stepwise()], budget=[8, None]) as p:
        cache = llava.model(**inputs, use_cache=True).past_key_values
        report = p.report()
    assert report.visual == (8, 4, 2, 0) and report.full_visual == 16 and report.mean_visual == 3.5
    assert report.tokens == tuple(total - 16 + kept for kept in (8, 4, 2, 0)) and report.full_tokens == total
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert report.kv_bytes == held // 2
    assert report.flops["transprune"] == flops.staged(report.tokens, 64, 96)
    assert report.flops["visual_todre"] == flops.staged(report.visual, 64, 96, flops.plain_layer)
    shape = flops.DecoderShape(4, 64, 96, 4, 2, 16, vocab=99)
    assert report.flops["exact"] == flops.exact_prefill(report.tokens, shape) + report.selection_flops
    assert report.full_flops["exact"] == flops.exact_prefill([total] * 4, shape)
    assert set(report.flops) == {*flops.FORMULAS, *(f"visual_{name}" for name in flops.FORMULAS), "exact"}


@torch.no_grad()
def test_choosing_between_layers_is_counted(llava: Any) -> None:
    settings = {"observe": [0, 1], "prune_after": [1], "ratios": [0.5]}
    inputs = llava.inputs()
    total, rows = inputs["input_ids"].shape[1], 6
    with vistok.lvlm.prune(llava.model, "transprune", **settings) as p:
        llava.model(**inputs)
    # Transitions of two layers; queries of the rows behind the image and keys of all tokens; their products.
    observed = 2 * 12 * total * 64
    attention = 2 * rows * 64 * 64 + 2 * total * 32 * 64 + 2 * rows * 64 * total
    assert p.report().selection_flops == observed + attention
    assert p.report().selection_seconds > 0


@torch.no_grad()
def test_the_tower_is_counted_where_the_images_are_given(each_class: Any) -> None:
    inputs = each_class.inputs(texts=(4, 9))
    with vistok.lvlm.prune(each_class.model, "uniform", budget=4) as p:
        each_class.model(**inputs)
    plain, report = p.report(), p.report(inputs)
    assert plain.vision_flops is None and report.vision_flops is not None and report.vision_flops > 1e5
    assert report.flops["exact"] == plain.flops["exact"] + report.vision_flops
    assert report.full_flops["exact"] == plain.full_flops["exact"] + report.vision_flops


@torch.no_grad()
def test_it_prints_as_a_table(llava: Any) -> None:
    with vistok.lvlm.prune(llava.model, "uniform", budget=4) as p:
        llava.model(**llava.inputs())
    text = str(p.report())
    assert "16 before, 4.0 per layer on average, 25.0%" in text and "exact" in text and "MiB per item" in text
