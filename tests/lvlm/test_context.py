"""What pruners at the input are given beside the tokens is what the model itself computes."""

from typing import Any

import pytest
import torch
from torch import Tensor

import vistok
import vistok.lvlm
from vistok.protocols import Budget
from vistok.tokens import TokenTensor

LLAVAS = ("llava", "llava_next", "llava_onevision")


class Watching:
    """Keeps evenly spaced tokens and remembers what it was given."""

    cannot: frozenset[str] = frozenset()

    def __init__(self, *needs: str, space: str = "projected", tower_layer: int = -1) -> None:
        self.needs = frozenset(needs)
        self.space, self.tower_layer = space, tower_layer
        self.tokens: list[TokenTensor] = []
        self.seen: list[dict[str, Any]] = []

    def select(self, tokens: TokenTensor, budget: Budget, **context: Any) -> Any:
        self.tokens.append(tokens)
        self.seen.append(context)
        return vistok.pruner("uniform").select(tokens, budget)


def watch(tiny: Any, watching: Watching, inputs: dict[str, Tensor]) -> dict[str, Any]:
    """What `watching` was given during one forward."""
    with torch.no_grad(), vistok.lvlm.prune(tiny.model, watching, budget=4):
        tiny.model(**inputs)
    return watching.seen[-1]


def eager_tower(model: Any, pixels: Tensor) -> Any:
    """Attentions and states of every layer of the tower."""
    tower = model.model.vision_tower
    before = tower.config._attn_implementation
    tower.set_attn_implementation("eager")
    try:
        with torch.no_grad():
            return tower(pixels, output_attentions=True, output_hidden_states=True)
    finally:
        tower.set_attn_implementation(before)


def packed(model: Any, values: Tensor, sizes: Tensor) -> list[Tensor]:
    """values [P, T, C] of two images of five crops, laid out as the model lays out its features."""
    options = {"vision_feature_select_strategy": "default"} if "Next" in type(model).__name__ else {}
    pieces = values.split(5)
    return list(
        model.model.pack_image_features(pieces, sizes, image_newline=torch.zeros(values.shape[2]), **options)[0]
    )


@pytest.mark.parametrize("layer", [-1, -2])
def test_attention_and_keys_cover_every_crop_and_are_zero_at_newlines(each_class: Any, layer: int) -> None:
    if each_class.name not in LLAVAS:
        return
    model, inputs = each_class.model, each_class.inputs(texts=(4, 7))
    seen = watch(each_class, Watching("attention", "tower_keys", tower_layer=layer), inputs)
    pixels = inputs["pixel_values"] if inputs["pixel_values"].ndim == 4 else inputs["pixel_values"].flatten(0, 1)
    out = eager_tower(model, pixels)
    rows = out.attentions[layer].mean(1)
    has_class = rows.shape[1] == 17
    attention = (rows[:, 0, 1:] if has_class else rows.mean(1))[..., None]
    block = [m for m in model.model.vision_tower.modules() if hasattr(m, "self_attn")][layer]
    norm = block.layer_norm1(out.hidden_states[layer - 1])
    keys = block.self_attn.k_proj(norm)[:, int(has_class) :].unflatten(2, (2, -1)).mean(2)
    expected = [attention, keys]
    if inputs["pixel_values"].ndim == 5:
        expected = [torch.stack(packed(model, each, inputs["image_sizes"])) for each in expected]
    torch.testing.assert_close(seen["attention"], expected[0][..., 0], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(seen["tower_keys"], expected[1], rtol=1e-4, atol=1e-5)


def test_attention_covers_the_frames_of_a_video(each_class: Any) -> None:
    if each_class.name != "llava_onevision":
        return
    inputs = each_class.video(texts=(4, 7))
    seen = watch(each_class, Watching("attention", "frames"), inputs)
    rows = eager_tower(each_class.model, inputs["pixel_values_videos"].flatten(0, 1)).attentions[-1].mean(1).mean(1)
    pooled = each_class.model.model.apply_pooling(rows[..., None]).reshape(2, 12)
    torch.testing.assert_close(seen["attention"][:, :12], pooled, rtol=1e-4, atol=1e-6)
    assert (seen["attention"][:, 12] == 0).all()
    assert seen["frames"].tolist() == 2 * [[0] * 4 + [1] * 4 + [2] * 4 + [-1]]


def test_frames_follow_the_grid_of_a_video_and_are_zero_in_an_image(qwen: Any) -> None:
    assert watch(qwen, Watching("frames"), qwen.video())["frames"].tolist() == [[0] * 8 + [1] * 8]
    assert watch(qwen, Watching("frames"), qwen.inputs())["frames"].tolist() == [[0] * 16]


def test_text_is_the_instruction_behind_the_last_image_in_the_decoders_space(each_class: Any) -> None:
    inputs = each_class.inputs(texts=(4, 7), images=2)
    seen = watch(each_class, Watching("text", "text_mask"), inputs)
    image = each_class.model.config.image_token_id
    for number in range(4):
        ids = inputs["input_ids"][number // 2]
        behind = ids[int((ids == image).nonzero()[-1]) + 1 :]
        assert seen["text_mask"][number].sum() == len(behind)
        words = seen["text"][number][seen["text_mask"][number]]
        assert torch.equal(words, each_class.model.get_input_embeddings()(behind))


def test_a_pruner_may_work_in_front_of_the_projector(llava: Any) -> None:
    inputs = llava.inputs(texts=(4, 7))
    inside = Watching("class_token", space="tower")
    seen = watch(llava, inside, inputs)
    states = eager_tower(llava.model, inputs["pixel_values"]).hidden_states[llava.model.config.vision_feature_layer]
    torch.testing.assert_close(inside.tokens[0].embeds, states[:, 1:], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(seen["class_token"], states[:, :1], rtol=1e-4, atol=1e-5)
    behind, before = (
        vistok.lvlm.prune_inputs(llava.model, pruner, inputs, budget=4)["mm_encoder_outputs"]["image"].pooler_output
        for pruner in (Watching(), Watching("class_token", space="tower"))
    )
    # The projector treats every token alone, so that choosing before or behind it is the same.
    torch.testing.assert_close(before, behind, rtol=1e-5, atol=1e-6)


def test_where_packing_adds_tokens_a_pruner_of_the_towers_space_gets_projected_ones(each_class: Any) -> None:
    if each_class.name != "llava_next":
        return
    inside = Watching("class_token", space="tower")
    assert "class_token" not in watch(each_class, inside, each_class.inputs())
    assert inside.tokens[0].embeds.shape[2] == 64  # type: ignore[union-attr]


@torch.no_grad()
def test_context_follows_the_tokens_along_a_chain(llava: Any) -> None:
    inputs = llava.inputs(texts=(4, 7))
    second = Watching("attention", "text")
    with vistok.lvlm.prune(llava.model, ["uniform", second], budget=[8, 4]):
        llava.model(**inputs)
    whole = watch(llava, Watching("attention", "text"), inputs)
    assert torch.equal(second.seen[0]["attention"], whole["attention"][:, 1::2])
    assert torch.equal(second.seen[0]["text"], whole["text"])


def test_what_the_tower_cannot_tell_is_refused(llava: Any) -> None:
    with pytest.raises(ValueError, match="tower_layer of a tower of 2 layers, got -3"):
        vistok.lvlm.prune(llava.model, Watching("attention", tower_layer=-3), budget=4)
    with pytest.raises(ValueError, match=r"look at one layer of the tower, got \[-2, -1\]"):
        vistok.lvlm.prune(llava.model, [Watching("attention"), Watching("attention", tower_layer=-2)], budget=[8, 4])
    features = llava.model.model.get_image_features(llava.inputs()["pixel_values"], return_dict=True)
    rest = {name: value for name, value in llava.inputs().items() if name != "pixel_values"}
    with (
        pytest.raises(ValueError, match="expected images to encode"),
        vistok.lvlm.prune(llava.model, Watching("attention"), budget=4),
    ):
        llava.model(**rest, mm_encoder_outputs={"image": features})
