"""What cannot be pruned is refused before the first token, and the message says what to do."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

import vistok
import vistok.lvlm

QUARTERS = {"observe": [0, 1, 2], "prune_after": [0, 1, 2], "ratios": [0.75, 0.5, 0.25]}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cache_implementation": "static"}, "expected a DynamicCache, .* got StaticCache"),
        ({"prefill_chunk_size": 8}, "prefill_chunk_size"),
        ({"prompt_lookup_num_tokens": 3, "max_matching_ngram_size": 1}, "assisted decoding"),
    ],
)
@torch.no_grad()
def test_a_way_to_generate_that_needs_every_token_is_refused(
    llava: Any, greedy: Any, options: dict[str, Any], message: str
) -> None:
    inputs = llava.inputs()
    inputs["input_ids"][:, -1] = inputs["input_ids"][:, 1]  # something to look up
    with vistok.lvlm.prune(llava.model, "transprune", **QUARTERS), pytest.raises(ValueError, match=message):
        llava.model.generate(**inputs, **greedy, **options)


@torch.no_grad()
def test_chunks_of_encoded_images_are_refused(llava: Any, greedy: Any) -> None:
    inputs = vistok.lvlm.prune_inputs(llava.model, vistok.pruner("uniform"), llava.inputs(), budget=1.0)
    with (
        vistok.lvlm.prune(llava.model, "transprune", **QUARTERS),
        pytest.raises(ValueError, match="prefill_chunk_size"),
    ):
        llava.model.generate(**inputs, **greedy, prefill_chunk_size=8)


@torch.no_grad()
def test_new_images_on_top_of_a_pruned_cache_are_refused(llava: Any) -> None:
    inputs = llava.inputs()
    with vistok.lvlm.prune(llava.model, "transprune", **QUARTERS):
        cache = llava.model(**inputs, use_cache=True).past_key_values
        with pytest.raises(ValueError, match="start new images without a cache"):
            llava.model(**inputs, past_key_values=cache)


@torch.no_grad()
def test_a_cache_from_before_is_refused(llava: Any) -> None:
    cache = llava.model(**llava.inputs(), use_cache=True).past_key_values
    with (
        vistok.lvlm.prune(llava.model, "transprune", **QUARTERS),
        pytest.raises(ValueError, match="filled inside this `with` block"),
    ):
        llava.model(input_ids=torch.tensor([[5]]), past_key_values=cache)


@torch.no_grad()
def test_rows_of_a_prompt_and_ready_made_masks_are_refused(llava: Any) -> None:
    inputs = llava.inputs()
    length = inputs["input_ids"].shape[1]
    with vistok.lvlm.prune(llava.model, "transprune", **QUARTERS):
        with pytest.raises(ValueError, match="logits_to_keep 0 or 1"):
            llava.model(**inputs, logits_to_keep=torch.tensor([3]))
        with pytest.raises(ValueError, match=r"attention_mask \[B, n\], got \[1, 1, "):
            llava.model(**inputs | {"attention_mask": torch.ones(1, 1, length, length, dtype=torch.bool)})
        with pytest.raises(ValueError, match="got shift_labels"):
            llava.model(**inputs, shift_labels=inputs["input_ids"])
        with pytest.raises(ValueError, match="`visual=`"):
            llava.model(inputs_embeds=torch.randn(1, 6, 64))


def test_a_decoder_layer_outside_of_the_model_is_refused(llava: Any) -> None:
    with (
        vistok.lvlm.prune(llava.model, "transprune", **QUARTERS),
        pytest.raises(RuntimeError, match="call that\\s+model itself"),
    ):
        llava.model.model.language_model(input_ids=torch.tensor([[5, 6]]))


def test_one_model_is_pruned_once_at_a_time(llava: Any) -> None:
    with (
        vistok.lvlm.prune(llava.model, "uniform", budget=0.5),
        pytest.raises(ValueError, match="being pruned already"),
        vistok.lvlm.prune(llava.model, "uniform", budget=0.5),
    ):
        pass
    with vistok.lvlm.prune(llava.model, "uniform", budget=0.5):
        pass


def test_a_report_needs_a_prompt(llava: Any) -> None:
    with vistok.lvlm.prune(llava.model, "uniform", budget=0.5) as p:
        with pytest.raises(ValueError, match="call the model inside"):
            p.report()
        with pytest.raises(ValueError, match="call the model inside"):
            _ = p.source


@pytest.mark.parametrize(
    ("pruners", "options", "message"),
    [
        ("uniform", {}, "a budget for every pruner at the input"),
        (["uniform", "random"], {"budget": 0.5}, "one budget for each of 2 pruners"),
        (["uniform"], {"budget": [0.5], "metric": "l2"} | {"colour": 1}, "no pruner 'uniform' setting|setting"),
        (3, {}, "a name or a pruner, got int"),
        ("transprune", {}, r"layer 6: expected one of 0..3"),
        ("transprune", QUARTERS | {"positions": "shuffle"}, "positions to be one of"),
    ],
)
def test_settings_that_do_not_fit_are_refused_at_once(
    llava: Any, pruners: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        vistok.lvlm.prune(llava.model, pruners, **options)


def test_settings_belong_to_a_name(llava: Any) -> None:
    with pytest.raises(ValueError, match="build the pruner with them"):
        vistok.lvlm.prune(llava.model, [vistok.pruner("uniform")], budget=0.5, metric="l2")


def test_two_pruners_behind_one_layer_are_refused(llava: Any) -> None:
    several = [vistok.pruner("transprune", **QUARTERS) for _ in range(2)]
    with pytest.raises(ValueError, match="cut behind different layers"):
        vistok.lvlm.prune(llava.model, several)


def test_reindexed_positions_with_three_axes_are_refused(qwen: Any) -> None:
    with pytest.raises(ValueError, match="mRoPE"):
        vistok.lvlm.prune(qwen.model, "uniform", budget=0.5, positions="reindex")


def test_a_model_of_another_class_is_refused_by_name() -> None:
    config = LlamaConfig(
        vocab_size=9, hidden_size=8, intermediate_size=8, num_hidden_layers=2, num_attention_heads=2, pad_token_id=0
    )
    model = AutoModelForCausalLM.from_config(config)
    with pytest.raises(ValueError, match="LlavaForConditionalGeneration.*got LlamaForCausalLM.*visual="):
        vistok.lvlm.prune(model, "uniform", budget=0.5)
    with pytest.raises(ValueError, match="input pruners need the images"):
        vistok.lvlm.prune(model, "uniform", budget=0.5, visual=torch.ones(1, 4, dtype=torch.bool))
    with pytest.raises(ValueError, match="decoder layers"):
        vistok.lvlm.prune(torch.nn.Linear(2, 2), "uniform", budget=0.5, visual=torch.ones(1, 4, dtype=torch.bool))
    settings = QUARTERS | {"observe": [0], "prune_after": [0], "ratios": [0.5]}
    with (
        vistok.lvlm.prune(model, "transprune", visual=torch.ones(1, 3, dtype=torch.bool), **settings),
        pytest.raises(ValueError, match=r"`visual` bool \[1, 4\]"),
    ):
        model(input_ids=torch.tensor([[1, 2, 3, 4]]))


def test_sliding_windows_and_unknown_attention_are_refused(llava: Any, stepwise: Callable[..., Any]) -> None:
    config = llava.model.model.language_model.config
    kinds, attention = getattr(config, "layer_types", None), config._attn_implementation
    try:
        config.layer_types = ["full_attention", "sliding_attention"]
        with pytest.raises(ValueError, match="full attention in all layers, got sliding_attention"):
            vistok.lvlm.prune(llava.model, stepwise())
        config.layer_types = None
        config._attn_implementation_internal = "flex_attention"
        with pytest.raises(ValueError, match="got 'flex_attention'"):
            vistok.lvlm.prune(llava.model, stepwise())
    finally:
        config.layer_types, config._attn_implementation_internal = kinds, attention


@pytest.mark.slow
def test_a_compiled_model_is_refused(llava: Any) -> None:
    with pytest.raises(ValueError, match="_orig_mod"):
        vistok.lvlm.prune(torch.compile(llava.model), "uniform", budget=0.5)


def test_a_cut_that_names_tokens_that_are_not_there_is_refused(llava: Any, stepwise: Callable[..., Any]) -> None:
    with (
        vistok.lvlm.prune(llava.model, stepwise({1: lambda n: [n]})),
        pytest.raises(ValueError, match="places below the visual tokens"),
    ):
        llava.model(**llava.inputs())


@torch.no_grad()
def test_an_assistant_is_refused_before_the_first_token(llava: Any, qwen: Any, greedy: Any) -> None:
    assistant = AutoModelForCausalLM.from_config(
        LlamaConfig(
            vocab_size=99,
            hidden_size=8,
            intermediate_size=8,
            num_hidden_layers=1,
            num_attention_heads=2,
            pad_token_id=0,
        )
    )
    with (
        vistok.lvlm.prune(llava.model, "transprune", **QUARTERS) as p,
        pytest.raises(ValueError, match="assisted decoding"),
    ):
        llava.model.generate(**llava.inputs(), **greedy, assistant_model=assistant)
    with pytest.raises(ValueError, match="call the model inside"):
        p.report()
