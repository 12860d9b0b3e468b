"""Merging in the vision tower is ToMe's own forward; merged tokens weigh log(size) where that is asked for."""

from typing import Any

import pytest
import torch
from torch import Tensor

import vistok
import vistok.lvlm
from vistok.ops import bipartite_match, merge
from vistok.pruning.tome import targets

from .conftest import Tiny, make_inputs, tiny_of
from .test_prune import generated, longer


@pytest.fixture(params=[-1, -2])
def deep(request: pytest.FixtureRequest) -> Tiny:
    """A LLaVA that takes the states of the last layer, or of the one before it."""
    tiny = tiny_of("llava")
    tiny.model.config.vision_feature_layer = request.param
    return tiny


def merged_by_hand(model: Any, pixels: Tensor, steps: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Projected tokens [P, N', D], places and sizes [P, N'], by the paper's forward of every block."""
    tower = model.model.vision_tower
    x = tower.pre_layrnorm(tower.embeddings(pixels))
    sizes = torch.ones(x.shape[:2])
    places = torch.arange(x.shape[1]).expand(x.shape[:2])
    for block, count in zip(tower.encoder.layers, steps, strict=False):
        attention, normed = block.self_attn, block.layer_norm1(x)
        query, key, value = (
            getattr(attention, f"{name}_proj")(normed).unflatten(2, (attention.num_heads, -1)).transpose(1, 2)
            for name in "qkv"
        )
        scores = query @ key.transpose(2, 3) * attention.scale + sizes.log()[:, None, None]
        x = x + attention.out_proj((scores.softmax(-1) @ value).transpose(1, 2).flatten(2))
        pairs = bipartite_match(key.mean(1), count, protect=1)
        places = places.gather(1, targets(pairs))
        x, sizes = merge(x, pairs, sizes)
        x = x + block.mlp(block.layer_norm2(x))
    return model.model.multi_modal_projector(x[:, 1:]), places[:, 1:] - 1, sizes[:, 1:]


@torch.no_grad()
def test_a_merged_tower_gives_what_the_papers_blocks_give(deep: Tiny) -> None:
    inputs = deep.inputs(texts=(4, 4))
    steps = [3, 3] if deep.model.config.vision_feature_layer == -1 else [6]
    expected, places, sizes = merged_by_hand(deep.model, inputs["pixel_values"], steps)
    with vistok.lvlm.prune(deep.model, "tome_tower", budget=10) as p:
        deep.model(**inputs)
        found = deep.model.model.get_image_features(inputs["pixel_values"], return_dict=True).pooler_output
        torch.testing.assert_close(torch.stack(list(found))[:, :10], expected, rtol=1e-4, atol=1e-5)
        assert p._merging is not None
        tokens = p._merging.tokens(list(found))
    assert tokens.source is not None and torch.equal(tokens.source, places)
    assert tokens.sizes is not None and torch.equal(tokens.sizes, sizes) and (sizes.sum(1) == 16).all()
    assert p.report().visual == 4 * (10.0,) and p.report().full_visual == 16
    begin = int((inputs["input_ids"][0] == deep.model.config.image_token_id).int().argmax())
    for row, kept in enumerate(places.tolist()):
        images = p.source[row][(p.source[row] >= begin) & (p.source[row] < begin + 16)]
        assert (images - begin).tolist() == kept


@pytest.mark.parametrize("name", ["tome_tower", "tome"])
@pytest.mark.parametrize("proportional", [False, True])
@torch.no_grad()
def test_cached_words_are_those_of_recomputation_also_with_beams(
    deep: Tiny, name: str, proportional: bool, greedy: Any, stepwise: Any
) -> None:
    inputs = deep.inputs(texts=(4, 9))
    merger: Any = vistok.pruner(name, proportional=proportional)
    for pruners, budgets in (([merger], [9]), ([merger, "uniform", stepwise()], [10, 6, None])):
        with vistok.lvlm.prune(deep.model, pruners, budget=budgets):
            cached = generated(deep.model, inputs, greedy)
            words = cached.sequences[:, inputs["input_ids"].shape[1] :]
            for step, logits in enumerate(cached.logits):
                again = deep.model(**longer(inputs, words[:, :step]), use_cache=False).logits[:, -1]
                torch.testing.assert_close(again, logits, rtol=1e-4, atol=1e-4)
            options = greedy | {"num_beams": 3}
            beams = deep.model.generate(**inputs, **options)
            assert torch.equal(beams, deep.model.generate(**inputs, **options, use_cache=False))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@torch.no_grad()
def test_a_merged_token_weighs_as_many_as_it_stands_for(attention: str) -> None:
    tiny = tiny_of("llava", attention)
    model, inputs = tiny.model, make_inputs("llava", tiny.model, texts=(5,))
    with vistok.lvlm.prune(model, "tome", budget=6, proportional=True) as p:
        found = model(**inputs).logits
    with vistok.lvlm.prune(model, "tome", budget=6) as q:
        plain = model(**inputs).logits
    assert torch.equal(p.source, q.source) and not torch.allclose(found, plain, atol=1e-3)
    features = model.model.get_image_features(inputs["pixel_values"], return_dict=True).pooler_output
    tokens: Any = vistok.lvlm.inputs.as_tokens(list(features))
    reduced: Any = vistok.pruner("tome").reduce(tokens, 6)  # type: ignore[attr-defined]
    embeds = model.get_input_embeddings()(inputs["input_ids"].gather(1, p.source))
    images = inputs["input_ids"].gather(1, p.source) == model.config.image_token_id
    embeds[images] = reduced.embeds[0]
    bias = torch.zeros(images.shape).masked_scatter(images, reduced.sizes[0].log())
    causal = torch.full((images.shape[1],) * 2, torch.finfo(torch.float32).min).triu(1)
    hidden = model.model.language_model(
        inputs_embeds=embeds, attention_mask=causal + bias[:, None, None], position_ids=p.source
    ).last_hidden_state
    torch.testing.assert_close(model.lm_head(hidden), found, rtol=1e-4, atol=1e-4)


def test_models_and_chains_that_cannot_merge_in_the_tower_are_refused(each_class: Any) -> None:
    if each_class.name != "llava":
        with pytest.raises(ValueError, match=r"expected a LLaVA with one view.*stage='input'"):
            vistok.lvlm.prune(each_class.model, "tome_tower", budget=6)
        return
    for chain in (["uniform", "tome_tower"], ["tome_tower", "todre"]):
        with pytest.raises(ValueError, match="merges in the vision tower first"):
            vistok.lvlm.prune(each_class.model, chain, budget=[8, 6])
    with pytest.raises(ValueError, match="8 tokens or more, to which 1 blocks"):
        vistok.lvlm.prune(each_class.model, "tome_tower", budget=3)
    with pytest.raises(ValueError, match="inside the vision tower; use `prune`"):
        vistok.lvlm.prune_inputs(each_class.model, vistok.pruner("tome_tower"), each_class.inputs(), budget=8)
