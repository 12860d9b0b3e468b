"""Pruning inside Hugging Face models: five classes, two kinds of attention, one item, padded batches and beams."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import vistok
import vistok.lvlm

BATCHES: dict[str, dict[str, Any]] = {"one": {"texts": (5,)}, "padded": {"texts": (4, 9)}}
IDENTITY = {"observe": [0, 1, 2], "prune_after": [0, 1, 2], "ratios": [1.0, 1.0, 1.0]}
QUARTERS = {"observe": [0, 1, 2], "prune_after": [0, 1, 2], "ratios": [0.75, 0.5, 0.25]}
BEAMS = {"one": 1, "padded": 1, "beams": 3}


def batch(tiny: Any, mode: str) -> dict[str, Tensor]:
    return tiny.inputs(**BATCHES.get(mode, BATCHES["padded"]))


def generated(model: Any, inputs: dict[str, Tensor], greedy: dict[str, Any], **options: Any) -> Any:
    return model.generate(**inputs, **(greedy | options), output_logits=True, return_dict_in_generate=True)


def hooks(model: torch.nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in model.modules())


def longer(inputs: dict[str, Tensor], words: Tensor) -> dict[str, Tensor]:
    """The prompt with words [B, t] behind it."""
    grown = inputs | {"input_ids": torch.cat([inputs["input_ids"], words], 1)}
    for name, fill in (("attention_mask", 1), ("mm_token_type_ids", 0)):
        if name in inputs:
            grown[name] = torch.cat([inputs[name], torch.full_like(words, fill)], 1)
    return grown


@pytest.mark.parametrize("mode", BEAMS)
@pytest.mark.parametrize("stage", ["input", "layers"])
@torch.no_grad()
def test_keeping_everything_is_the_plain_model_bit_by_bit(tiny: Any, stage: str, mode: str, greedy: Any) -> None:
    inputs = batch(tiny, mode)
    plain = generated(tiny.model, inputs, greedy, num_beams=BEAMS[mode])
    pruned: dict[str, Any] = {"pruners": "uniform", "budget": 1.0} if stage == "input" else {"pruners": "transprune"}
    with vistok.lvlm.prune(tiny.model, **pruned, **({} if stage == "input" else IDENTITY)):
        kept = generated(tiny.model, inputs, greedy, num_beams=BEAMS[mode])
    assert torch.equal(kept.sequences, plain.sequences)
    assert all(torch.equal(a, b) for a, b in zip(kept.logits, plain.logits, strict=True))


@pytest.mark.parametrize("mode", ["one", "padded"])
@pytest.mark.parametrize("stage", ["input", "layers", "both"])
@torch.no_grad()
def test_generation_from_the_cache_equals_recomputation_without(
    tiny: Any, stage: str, mode: str, greedy: Any, stepwise: Callable[..., Any]
) -> None:
    inputs = batch(tiny, mode)
    policies = ["keep"] if tiny.name.startswith("qwen") else ["keep", "reindex"]
    for positions in policies:
        stages = {"input": ["uniform"], "layers": [stepwise()], "both": ["uniform", stepwise()]}[stage]
        budgets = [0.5 if name == "uniform" else None for name in stages]
        with vistok.lvlm.prune(tiny.model, stages, budget=budgets, positions=positions):
            cached = generated(tiny.model, inputs, greedy)
            words = cached.sequences[:, inputs["input_ids"].shape[1] :]
            for step, logits in enumerate(cached.logits):
                again = tiny.model(**longer(inputs, words[:, :step]), use_cache=False).logits[:, -1]
                torch.testing.assert_close(again, logits, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_beams_equal_beams_without_a_cache(tiny: Any, greedy: Any, stepwise: Callable[..., Any]) -> None:
    inputs = batch(tiny, "padded")
    options = greedy | {"num_beams": 3, "return_dict_in_generate": True, "output_scores": True}
    with vistok.lvlm.prune(tiny.model, ["uniform", stepwise()], budget=[0.5, None]):
        cached = tiny.model.generate(**inputs, **options)
        again = tiny.model.generate(**inputs, **options, use_cache=False)
    assert torch.equal(cached.sequences, again.sequences)
    torch.testing.assert_close(cached.sequences_scores, again.sequences_scores, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_every_layer_caches_only_the_tokens_alive_at_it(tiny: Any, greedy: Any) -> None:
    inputs = batch(tiny, "padded")
    visual = int((inputs["input_ids"] == tiny.model.config.image_token_id).sum(1).max())
    text = inputs["input_ids"].shape[1] - visual
    with vistok.lvlm.prune(tiny.model, "transprune", **QUARTERS) as p:
        cache = generated(tiny.model, inputs, greedy).past_key_values
    kept = [visual, int(visual * 0.75), int(visual * 0.5), int(visual * 0.25)]
    assert list(p.report().tokens) == [text + count for count in kept]
    assert [cache.get_seq_length(layer) for layer in range(4)] == [text + count + 4 for count in kept]


@torch.no_grad()
def test_an_item_of_a_padded_batch_gets_the_words_that_it_gets_alone(tiny: Any, greedy: Any) -> None:
    together = tiny.inputs(texts=(4, 9))
    for settings in ({"pruners": "k_center", "budget": 0.3}, {"pruners": "transprune", **QUARTERS}):
        with vistok.lvlm.prune(tiny.model, **settings):
            both = generated(tiny.model, together, greedy)
            for row in range(2):
                own = {name: value[row : row + 1] for name, value in together.items()}
                if tiny.name.startswith("qwen"):
                    own["pixel_values"] = together["pixel_values"].chunk(2)[row]
                keep = own["attention_mask"][0].bool()
                for name in ("input_ids", "attention_mask", "mm_token_type_ids"):
                    if name in own:
                        own[name] = own[name][:, keep]
                alone = generated(tiny.model, own, greedy)
                for a, b in zip(alone.logits, both.logits, strict=True):
                    torch.testing.assert_close(a[0], b[row], rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_items_that_keep_different_numbers_do_not_depend_on_each_other(
    tiny: Any, greedy: Any, stepwise: Callable[..., Any]
) -> None:
    inputs = tiny.inputs(texts=(5, 5))
    calls: list[list[int]] = []

    def keep(lengths: list[int]) -> Callable[[int], list[int]]:
        queue: list[int] = []

        def cut(count: int) -> list[int]:
            if not queue:
                queue.extend(lengths)
            return list(range(min(queue.pop(0), count)))

        calls.append(lengths)
        return cut

    cuts = {0: keep([9, 4]), 2: keep([5, 0])}
    with vistok.lvlm.prune(tiny.model, stepwise(cuts)) as p:
        both = generated(tiny.model, inputs, greedy)
    assert p.report().visual[1:] == (6.5, 6.5, 2.5)
    for row in range(2):
        own = {name: value[row : row + 1] for name, value in inputs.items()}
        if tiny.name.startswith("qwen"):
            own["pixel_values"] = inputs["pixel_values"].chunk(2)[row]
        alone_cuts = {0: keep([[9, 4][row]]), 2: keep([[5, 0][row]])}
        with vistok.lvlm.prune(tiny.model, stepwise(alone_cuts)):
            alone = generated(tiny.model, own, greedy)
        for a, b in zip(alone.logits, both.logits, strict=True):
            torch.testing.assert_close(a[0], b[row], rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_nothing_stays_on_the_model_after_the_block_or_an_exception(each_class: Any, greedy: Any) -> None:
    model, inputs = each_class.model, each_class.inputs()
    plain = generated(model, inputs, greedy).logits[0]
    # transformers itself hooks some modules during their first forward.
    before, attributes = hooks(model), set(vars(model))
    with vistok.lvlm.prune(model, "uniform", budget=0.5):
        generated(model, inputs, greedy)
        assert hooks(model) > before
    assert hooks(model) == before and set(vars(model)) == attributes
    with pytest.raises(RuntimeError, match="on purpose"), vistok.lvlm.prune(model, "transprune", **QUARTERS):
        generated(model, inputs, greedy)
        raise RuntimeError("on purpose")
    assert hooks(model) == before and set(vars(model)) == attributes
    assert torch.equal(generated(model, inputs, greedy).logits[0], plain)


@torch.no_grad()
def test_a_forward_that_fails_leaves_the_next_one_intact(llava: Any, greedy: Any) -> None:
    inputs = llava.inputs()
    with vistok.lvlm.prune(llava.model, "transprune", **QUARTERS):
        expected = generated(llava.model, inputs, greedy).logits[0]
        with pytest.raises(ValueError, match="placeholders"):
            llava.model.generate(**(inputs | {"input_ids": inputs["input_ids"][:, 6:]}), **greedy)
        assert torch.equal(generated(llava.model, inputs, greedy).logits[0], expected)


@torch.no_grad()
def test_several_images_and_text_between_them(each_class: Any, greedy: Any, stepwise: Callable[..., Any]) -> None:
    model, inputs = each_class.model, each_class.inputs(texts=(5, 8), images=2)
    each = int((inputs["input_ids"] == model.config.image_token_id)[0].sum()) // 2
    with vistok.lvlm.prune(model, ["uniform", stepwise({1: lambda n: list(range(n - 3))})], budget=[4, None]) as p:
        cached = generated(model, inputs, greedy)
        words = cached.sequences[:, inputs["input_ids"].shape[1] :]
        again = model(**longer(inputs, words[:, :3]), use_cache=False).logits[:, -1]
    torch.testing.assert_close(again, cached.logits[3], rtol=1e-4, atol=1e-4)
    assert p.report().full_visual == 2 * each and p.report().visual == (8, 8, 5, 5)
    with vistok.lvlm.prune(model, "transprune", scope="image", **QUARTERS) as p:
        model(**inputs)
    assert p.report().visual[1:] == tuple(2.0 * int(each * ratio) for ratio in QUARTERS["ratios"])


@pytest.mark.parametrize("name", ["llava_onevision", "qwen2_vl", "qwen2_5_vl"])
@torch.no_grad()
def test_a_video_is_pruned_like_an_image(each_class: Any, name: str, greedy: Any, stepwise: Callable[..., Any]) -> None:
    if each_class.name != name:
        return
    model, inputs = each_class.model, each_class.video(texts=(5, 8))
    plain = generated(model, inputs, greedy)
    with vistok.lvlm.prune(model, "uniform", budget=1.0):
        kept = generated(model, inputs, greedy)
    assert all(torch.equal(a, b) for a, b in zip(kept.logits, plain.logits, strict=True))
    with vistok.lvlm.prune(model, ["uniform", stepwise({1: lambda n: list(range(n - 3))})], budget=[6, None]) as p:
        cached = generated(model, inputs, greedy)
        words = cached.sequences[:, inputs["input_ids"].shape[1] :]
        again = model(**longer(inputs, words[:, :3]), use_cache=False).logits[:, -1]
    torch.testing.assert_close(again, cached.logits[3], rtol=1e-4, atol=1e-4)
    assert p.report().visual == (6, 6, 3, 3)


@torch.no_grad()
def test_a_prompt_without_images_passes(each_class: Any, greedy: Any) -> None:
    ids = torch.tensor([[1, 5, 9, 20, 33]])
    plain = each_class.model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **greedy)
    with vistok.lvlm.prune(each_class.model, ["uniform", vistok.pruner("transprune", **QUARTERS)], budget=[0.5, None]):
        pruned = each_class.model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **greedy)
    assert torch.equal(plain, pruned)


@torch.no_grad()
def test_a_loop_of_forwards_over_the_cache_is_what_generate_does(each_class: Any, greedy: Any) -> None:
    model, inputs = each_class.model, each_class.inputs()
    with vistok.lvlm.prune(model, ["uniform", vistok.pruner("transprune", **QUARTERS)], budget=[0.5, None]):
        expected = generated(model, inputs, greedy)
        out = model(**inputs, use_cache=True)
        mask = inputs["attention_mask"]
        for step, logits in enumerate(expected.logits[1:]):
            word = expected.sequences[:, inputs["input_ids"].shape[1] + step][:, None]
            mask = torch.cat([mask, torch.ones_like(word)], 1)
            out = model(input_ids=word, attention_mask=mask, past_key_values=out.past_key_values, use_cache=True)
            torch.testing.assert_close(out.logits[:, -1], logits, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_the_source_names_the_places_that_reached_the_end(llava: Any) -> None:
    inputs = llava.inputs()
    with vistok.lvlm.prune(llava.model, ["uniform", vistok.pruner("transprune", **QUARTERS)], budget=[0.5, None]) as p:
        llava.model(**inputs)
    ids = inputs["input_ids"].gather(1, p.source)
    image = llava.model.config.image_token_id
    assert ids[ids != image].tolist() == inputs["input_ids"][inputs["input_ids"] != image].tolist()
    assert int((ids == image).sum()) == int(8 * 0.25)
    assert p.source.tolist() == p.source.sort(dim=1).values.tolist()


@pytest.mark.parametrize("stage", ["input", "layers", "both"])
@torch.no_grad()
def test_a_second_question_about_the_same_image_continues_the_cache(
    each_class: Any, stage: str, greedy: Any, stepwise: Callable[..., Any]
) -> None:
    model, inputs = each_class.model, each_class.inputs(texts=(4, 9))
    stages = {"input": ["uniform"], "layers": [stepwise()], "both": ["uniform", stepwise()]}[stage]
    with vistok.lvlm.prune(model, stages, budget=[0.5 if name == "uniform" else None for name in stages]):
        first = generated(model, inputs, greedy)
        words = first.sequences[:, inputs["input_ids"].shape[1] :]
        grown = longer(inputs, torch.cat([words, torch.tensor([[7, 8, 9], [17, 18, 19]])], 1))
        text = {name: grown[name] for name in ("input_ids", "attention_mask", "mm_token_type_ids") if name in grown}
        second = generated(model, text, greedy, past_key_values=first.past_key_values)
        again = model(**grown, use_cache=False).logits[:, -1]
    torch.testing.assert_close(again, second.logits[0], rtol=1e-4, atol=1e-4)
