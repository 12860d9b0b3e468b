"""Fewer visual tokens by public arguments: the same words as by hooks, the right tokens, positions and padding."""

from typing import Any

import pytest
import torch
from torch import Tensor

import vistok
import vistok.lvlm
from vistok.protocols import Budget
from vistok.tokens import Assignment, TokenTensor


def image_of(tiny: Any) -> int:
    return int(tiny.model.config.image_token_id)


@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_tokens_positions_and_features_are_cut_alike(each_class: Any, side: str) -> None:
    inputs = each_class.inputs(texts=(4, 7), side=side)
    labels = inputs["input_ids"].clone()
    cut = vistok.lvlm.prune_inputs(each_class.model, vistok.pruner("uniform"), inputs | {"labels": labels}, budget=4)
    ids, mask, image = cut["input_ids"], cut["attention_mask"].bool(), image_of(each_class)
    assert ((ids == image).sum(1) == 4).all() and not ids[~mask].eq(image).any()
    assert "pixel_values" not in cut
    (features,) = cut["mm_encoder_outputs"].values()
    assert [len(feature) for feature in features.pooler_output] == [4, 4]
    for row in range(2):
        old = inputs["input_ids"][row][inputs["attention_mask"][row].bool()]
        new = ids[row][mask[row]]
        assert new[new != image].tolist() == old[old != image].tolist()
        assert torch.equal(cut["labels"][row][mask[row]], new) and (cut["labels"][row][~mask[row]] == -100).all()
        # Positions are those that the kept tokens had: text behind the image keeps its distance from the start.
        text = cut["position_ids"][0, row] if cut["position_ids"].ndim == 3 else cut["position_ids"][row]
        assert int(text[mask[row]][-1]) == len(old) - 1


@torch.no_grad()
def test_it_generates_the_words_that_the_hooks_generate(each_class: Any, greedy: Any) -> None:
    inputs, pruner = each_class.inputs(texts=(4, 7)), vistok.pruner("k_center")
    cut = vistok.lvlm.prune_inputs(each_class.model, pruner, inputs, budget=0.25)
    plain = each_class.model.generate(**cut, **greedy, output_logits=True, return_dict_in_generate=True)
    with vistok.lvlm.prune(each_class.model, pruner, budget=0.25):
        hooked = each_class.model.generate(**inputs, **greedy, output_logits=True, return_dict_in_generate=True)
    assert all(torch.equal(a, b) for a, b in zip(plain.logits, hooked.logits, strict=True))
    lengths = {plain.past_key_values.get_seq_length(layer) for layer in range(4)}
    assert lengths == {cut["input_ids"].shape[1] + 4}


@torch.no_grad()
def test_reindexed_positions_close_the_gaps(llava: Any) -> None:
    inputs = llava.inputs(texts=(4, 7))
    cut = vistok.lvlm.prune_inputs(llava.model, vistok.pruner("uniform"), inputs, budget=4, positions="reindex")
    for row in range(2):
        positions = cut["position_ids"][row][cut["attention_mask"][row].bool()]
        assert positions.tolist() == list(range(len(positions)))


@torch.no_grad()
def test_images_of_different_sizes_keep_their_share(each_class: Any, greedy: Any) -> None:
    if each_class.name != "llava_next":
        return
    inputs = each_class.inputs(texts=(5, 5))
    one = {name: value[:1] for name, value in inputs.items()}
    other = one | {"image_sizes": torch.tensor([[16, 30]])}
    counts = [
        len(each_class.model.model.get_image_features(x["pixel_values"], x["image_sizes"]).pooler_output[0])
        for x in (one, other)
    ]
    assert counts[0] != counts[1]
    text = one["input_ids"][one["input_ids"] != image_of(each_class)]
    rows = [torch.cat([text[:4], torch.full((n,), image_of(each_class)), text[4:]]) for n in counts]
    longest = max(map(len, rows))
    both: dict[str, Tensor] = {
        "input_ids": torch.stack([torch.nn.functional.pad(row, (longest - len(row), 0)) for row in rows]),
        "attention_mask": torch.stack([(torch.arange(longest) >= longest - len(row)).long() for row in rows]),
        "pixel_values": torch.cat([one["pixel_values"]] * 2),
        "image_sizes": torch.cat([one["image_sizes"], other["image_sizes"]]),
    }
    cut = vistok.lvlm.prune_inputs(each_class.model, vistok.pruner("uniform"), both, budget=0.25)
    kept = (cut["input_ids"] == image_of(each_class)).sum(1).tolist()
    assert kept == [round(0.25 * count) for count in counts]
    with vistok.lvlm.prune(each_class.model, "uniform", budget=0.25):
        together = each_class.model.generate(**both, **greedy, output_logits=True, return_dict_in_generate=True)
        alone_ids = {"input_ids": rows[1][None], "attention_mask": torch.ones_like(rows[1])[None]}
        alone = each_class.model.generate(
            **alone_ids,
            pixel_values=other["pixel_values"],
            image_sizes=other["image_sizes"],
            **greedy,
            output_logits=True,
            return_dict_in_generate=True,
        )
    for a, b in zip(alone.logits, together.logits, strict=True):
        torch.testing.assert_close(a[0], b[1], rtol=1e-4, atol=1e-4)


class Averages:
    """Merges neighbours in pairs: its tokens are no subset of what it is given."""

    cannot: frozenset[str] = frozenset()
    needs: frozenset[str] = frozenset()

    def select(self, tokens: TokenTensor, budget: Budget) -> Any:
        raise AssertionError("a pruner that reduces is asked to reduce")

    def reduce(self, tokens: TokenTensor, budget: Budget) -> TokenTensor:
        slots = torch.arange(tokens.num_slots) // 2
        return tokens.merge(Assignment(slots.expand(tokens.mask.shape), (tokens.num_slots + 1) // 2))


@torch.no_grad()
def test_merged_tokens_stand_where_the_token_they_grew_from_stood(llava: Any) -> None:
    inputs = llava.inputs()
    features = llava.model.model.get_image_features(inputs["pixel_values"]).pooler_output[0]
    cut = vistok.lvlm.prune_inputs(llava.model, Averages(), inputs, budget=8)
    torch.testing.assert_close(
        cut["mm_encoder_outputs"]["image"].pooler_output[0], features.reshape(8, 2, -1).mean(1), rtol=1e-5, atol=1e-6
    )
    begin = int((inputs["input_ids"][0] == image_of(llava)).int().argmax())
    images = cut["input_ids"][0] == image_of(llava)
    assert cut["position_ids"][0][images].tolist() == list(range(begin, begin + 16, 2))


@torch.no_grad()
def test_a_chain_hands_on_the_tokens_that_are_left(llava: Any) -> None:
    inputs = llava.inputs()
    with vistok.lvlm.prune(llava.model, ["uniform", "k_center"], budget=[8, 3]) as p:
        llava.model(**inputs)
    first = vistok.lvlm.prune_inputs(llava.model, vistok.pruner("uniform"), inputs, budget=8)
    begin = int((inputs["input_ids"][0] == image_of(llava)).int().argmax())
    uniform = first["position_ids"][0][first["input_ids"][0] == image_of(llava)] - begin
    kept = p.source[0][(p.source[0] >= begin) & (p.source[0] < begin + 16)] - begin
    assert len(kept) == 3 and set(kept.tolist()) <= set(uniform.tolist())


@torch.no_grad()
def test_random_pruning_repeats_with_its_generator(llava: Any) -> None:
    found = []
    for seed in (1, 1, 2):
        generator = torch.Generator().manual_seed(seed)
        with vistok.lvlm.prune(llava.model, "random", budget=5, generator=generator) as p:
            llava.model(**llava.inputs())
        found.append(p.source.tolist())
    assert found[0] == found[1] != found[2]


@torch.no_grad()
def test_attention_of_the_tower_is_what_the_tower_computes(each_class: Any, greedy: Any) -> None:
    model, inputs = each_class.model, each_class.inputs(texts=(4, 7))
    if each_class.name.startswith("qwen"):
        with pytest.raises(ValueError, match="pivot='first'"):
            vistok.lvlm.prune(model, "todre", budget=4)
        return
    seen: list[dict[str, Any]] = []

    class Watching:
        cannot: frozenset[str] = frozenset()
        needs: frozenset[str] = frozenset({"attention", "thumbnail"})

        def select(self, tokens: TokenTensor, budget: Budget, **context: Any) -> Any:
            seen.append(context)
            return vistok.pruner("uniform").select(tokens, budget)

    with vistok.lvlm.prune(model, Watching(), budget=4):
        model(**inputs)
        model.generate(**inputs, **greedy, num_beams=3)
    pixels = inputs["pixel_values"] if inputs["pixel_values"].ndim == 4 else inputs["pixel_values"].flatten(0, 1)
    tower = model.model.vision_tower
    before = tower.config._attn_implementation
    tower.set_attn_implementation("eager")
    try:
        last = tower(pixels, output_attentions=True).attentions[-1].mean(1)
    finally:
        tower.set_attn_implementation(before)
    expected = last[:, 0, 1:] if last.shape[1] == 17 else last.mean(1)
    thumbnails = expected if inputs["pixel_values"].ndim == 4 else expected[::5]
    for context, repeats in zip(seen, (1, 3), strict=True):
        want = thumbnails.repeat_interleave(repeats, 0)
        torch.testing.assert_close(context["attention"][:, :16], want, rtol=1e-4, atol=1e-6)
        assert ("thumbnail" in context) == (inputs["pixel_values"].ndim == 5)


@pytest.mark.parametrize("name", vistok.list_pruners())
@torch.no_grad()
def test_every_pruner_there_is_works_inside_a_model(llava: Any, name: str, greedy: Any) -> None:
    settings = vistok.info("pruner", name).tiny
    at_input = hasattr(vistok.pruner(name, **settings), "select")
    plain = llava.model.generate(**llava.inputs(texts=(4, 7)), **greedy)
    with vistok.lvlm.prune(llava.model, name, budget=0.5 if at_input else None, **settings) as p:
        words = llava.model.generate(**llava.inputs(texts=(4, 7)), **greedy)
    assert words.shape == plain.shape and p.report().mean_visual < 16


@torch.no_grad()
def test_instruction_attention_is_that_of_the_first_layer(each_class: Any) -> None:
    model, inputs = each_class.model, each_class.inputs(texts=(4, 7))
    seen: list[Tensor] = []

    class Watching:
        cannot: frozenset[str] = frozenset()
        needs: frozenset[str] = frozenset({"instruction_attention"})

        def select(self, tokens: TokenTensor, budget: Budget, **context: Any) -> Any:
            seen.append(context["instruction_attention"])
            return vistok.pruner("uniform").select(tokens, budget)

    vistok.lvlm.prune_inputs(model, Watching(), inputs, budget=4)
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        first = model(**inputs, output_attentions=True).attentions[0].mean(1)
    finally:
        model.set_attn_implementation(before)
    for row in range(2):
        images = (inputs["input_ids"][row] == image_of(each_class)).nonzero()[:, 0]
        expected = first[row, int(images[-1]) + 1 :, images].mean(0)
        torch.testing.assert_close(seen[0][row], expected, rtol=1e-4, atol=1e-6)


def test_context_and_inputs_that_do_not_fit_are_refused(llava: Any) -> None:
    inputs = llava.inputs()
    with pytest.raises(TypeError, match="takes no attention"):
        vistok.lvlm.prune_inputs(llava.model, vistok.pruner("uniform"), inputs, budget=4, attention=torch.ones(1, 16))
    with pytest.raises(ValueError, match="pixel_values"):
        text = {name: inputs[name] for name in ("input_ids", "attention_mask")}
        vistok.lvlm.prune_inputs(llava.model, vistok.pruner("uniform"), text, budget=4)
    with pytest.raises(ValueError, match="use `prune`"):
        vistok.lvlm.prune_inputs(llava.model, vistok.pruner("transprune"), inputs, budget=4)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="got 15 and 16"):
        fewer = inputs["input_ids"].clone()
        fewer[0, (fewer[0] == image_of(llava)).int().argmax()] = 5
        vistok.lvlm.prune_inputs(llava.model, vistok.pruner("uniform"), inputs | {"input_ids": fewer}, budget=4)
