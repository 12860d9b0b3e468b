"""MingTok: published sizes and keys, streams that equal the full pass, causality, rectangles, what is refused."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import vistok
from vistok.config import deep_merge
from vistok.layers.normalizer import NormalizedLatent, RawLatent
from vistok.tokenizers.mingtok import MingTok
from vistok.tokens import Selection

PRESET = vistok.info("tokenizer", "mingtok")
TINY: dict[str, Any] = deep_merge({**PRESET.settings, "preprocess": None}, PRESET.tiny)


@pytest.fixture(scope="module")
def model() -> MingTok:
    torch.manual_seed(0)
    built = MingTok(**TINY).eval()
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return built


def images(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def latents(model: MingTok, count: int, batch: int = 2) -> Tensor:
    return torch.randn(batch, count, model.dim, generator=torch.Generator().manual_seed(1))


def count(module: nn.Module) -> int:
    return sum(value.numel() for value in module.state_dict().values())


def test_the_published_model_has_its_published_size() -> None:
    with torch.device("meta"):
        model: Any = vistok.tokenizer("mingtok")
    assert len(model.state_dict()) == 738
    assert count(model) == 697_719_584
    parts = {"low_level_encoder": 87_651_104, "semantic_decoder": 302_771_456, "pixel_decoder": 303_098_624}
    assert {name: count(getattr(model, name)) for name in parts} == parts
    state = model.state_dict()
    assert state["low_level_encoder.pos_embed"].shape == (1, 257, 768)
    assert state["semantic_decoder.blocks.0.23.mlp.w12.weight"].shape == (2 * 2736, 1024)
    assert state["pixel_decoder.blocks.0.23.mlp.fc1.weight"].shape == (4096, 1024)


@torch.no_grad()
def test_any_mix_of_steps_equals_the_full_causal_pass(model: MingTok) -> None:
    z = latents(model, 40)
    full = model.semantic_features(z).patches
    for chunks in ([1] * 40, [17, 1, 1, 20, 1], [40]):
        stream = model.stream()
        found = torch.cat([stream.step(part) for part in z.split(chunks, 1)], 1)
        torch.testing.assert_close(found, full, rtol=0, atol=1e-5)
        assert stream.length == 40


def test_a_stream_goes_on_whether_inference_mode_is_on_or_not(model: MingTok) -> None:
    z = latents(model, 6)
    stream, found = model.stream(), list[Tensor]()
    for place, one in enumerate(z.split(1, 1)):
        with torch.inference_mode(place % 2 == 0):
            found.append(stream.step(one))
    torch.testing.assert_close(torch.cat(found, 1), model.semantic_features(z).patches.detach(), rtol=0, atol=1e-5)


@torch.no_grad()
def test_later_latents_change_no_earlier_token(model: MingTok) -> None:
    z = latents(model, 12)
    other = torch.cat([z[:, :7], -z[:, 7:]], 1)
    one, two = model.semantic_features(z).patches, model.semantic_features(other).patches
    assert torch.equal(one[:, :7], two[:, :7])
    assert ((one[:, 7:] - two[:, 7:]).abs().amax((0, 2)) > 1e-3).all()


@torch.no_grad()
def test_the_class_latent_is_last_and_taken_off_only_when_there_is_one(model: MingTok) -> None:
    found = model.latents(images(2, 3, 24, 40))
    assert found.grid == (3, 5) and found.patches.shape == (2, 15, 8) and found.cls.shape == (2, 1, 8)
    without = model.semantic_features(found.patches)
    assert without.cls is None and without.patches.shape[1] == 15
    joined = model.semantic_features(torch.cat([found.patches, found.cls], 1), has_cls=True)
    assert joined.cls is not None and joined.cls.shape == (2, model.semantic_dim)
    torch.testing.assert_close(joined.patches, without.patches, rtol=0, atol=1e-5)


@torch.no_grad()
def test_semantic_tokens_decode_to_the_same_image_as_their_latents(model: MingTok) -> None:
    tokens = model.encode(images(2, 3, 20, 40))
    semantic = model.semantic(tokens).check()
    assert semantic.spec.dim == model.semantic_dim and semantic.spec.grid == (3, 5)
    assert torch.equal(model.decode(semantic), model.decode(tokens))


@torch.no_grad()
def test_a_rectangle_is_laid_out_row_by_row(model: MingTok) -> None:
    """Without attention every token makes its own patch of pixels, so each must land where the token stands."""
    lonely = MingTok(**TINY).eval()
    lonely.load_state_dict(model.state_dict())
    for name, value in lonely.pixel_decoder.named_parameters():
        if name.endswith(("attn.proj.weight", "attn.proj.bias")):
            value.zero_()
    tokens = model.semantic(model.encode(images(1, 3, 16, 40)))
    assert tokens.embeds is not None
    changed = tokens.embeds.clone()
    changed[:, 7] += 1  # second row, third column of 2 x 5
    difference = (lonely.decode(replace(tokens, embeds=changed)) - lonely.decode(tokens)).abs().amax((0, 1))
    assert difference[8:16, 16:24].amax() > 0
    difference[8:16, 16:24] = 0
    assert difference.amax() == 0


@torch.no_grad()
def test_positions_keep_the_class_row_and_grow_with_the_grid(model: MingTok) -> None:
    encoder = model.low_level_encoder
    assert torch.equal(encoder.positions((3, 3)), encoder.pos_embed)
    wide = encoder.positions((3, 7))
    assert wide.shape == (1, 22, 64)
    assert torch.equal(wide[:, -1], encoder.pos_embed[:, -1])


def test_normalizing_is_undone_and_happens_once(model: MingTok) -> None:
    raw = RawLatent(3 * torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0)))
    z = model.normalize(raw)
    torch.testing.assert_close(z.values * 2.5 + 0.3, raw.values)
    torch.testing.assert_close(model.denormalize(z).values, raw.values)
    assert isinstance(z, NormalizedLatent)


def authors_file(model: MingTok, **extra: Tensor) -> dict[str, Tensor]:
    return {**model.state_dict(), **extra}


def test_checkpoints_load_bare_from_under_model_and_out_of_the_whole_model(model: MingTok, tmp_path: Path) -> None:
    one = torch.zeros(1)
    bare, nested, whole = (tmp_path / name for name in ("bare.pt", "nested.pth", "whole.safetensors"))
    torch.save(authors_file(model), bare)
    torch.save({"model": authors_file(model, **{"target_backbone.blocks.0.weight": one}), "epoch": 3}, nested)
    inside = {f"vision.{name}": value for name, value in model.state_dict().items()}
    save_file({**inside, "linear_proj.0.weight": one, "model.diffloss.net.input_proj.bias": one.clone()}, whole)
    for path in (bare, nested, whole):
        loaded: Any = vistok.tokenizer("mingtok", checkpoint=path, **TINY)
        assert all(torch.equal(value, model.state_dict()[name]) for name, value in loaded.state_dict().items())


def test_the_authors_config_gives_settings_and_that_of_the_whole_model_none() -> None:
    stages = {name: TINY[name] for name in ("low_level_encoder", "semantic_decoder", "pixel_decoder")}
    theirs = {**stages, "scaling_factor": 2.0, "mean": 0.5, "pretrained_checkpoint": "", "architectures": ["MingTok"]}
    model = MingTok(**MingTok.rename_settings(theirs))
    assert (model.scaling_factor, model.mean) == (2.0, 0.5)
    assert MingTok.rename_settings({"llm_config": {}, "mlp_depth": 2, "model_type": "bailingmm"}) == {}


def test_a_checkpoint_that_does_not_fit_is_refused_by_name(model: MingTok, tmp_path: Path) -> None:
    path = tmp_path / "mingtok.pt"
    state = dict(model.state_dict())
    del state["low_level_encoder.cls_token"]
    torch.save({**state, "surplus": torch.zeros(1), "sem_to_pix.bias": torch.zeros(3)}, path)
    with pytest.raises(ValueError, match=r"missing low_level_encoder.cls_token.*unexpected surplus.*sem_to_pix.bias"):
        vistok.tokenizer("mingtok", checkpoint=path, **TINY)


def test_tokens_that_are_missing_or_reordered_are_refused(model: MingTok) -> None:
    tokens = model.encode(images(1, 3, 24, 24))
    with pytest.raises(ValueError, match="all tokens of a grid"):
        model.decode(tokens.truncate(4))
    turned = tokens.select(Selection(torch.arange(8, -1, -1)[None]))
    with pytest.raises(ValueError, match="order of encode"):
        model.semantic(turned)
    assert torch.equal(model.decode(tokens.select(Selection(torch.arange(9)[None]))), model.decode(tokens))
    semantic = model.semantic(tokens)
    pruned = Selection(torch.arange(9)[None], lengths=torch.tensor([4]))
    for wrong in (tokens.select(pruned), semantic.select(pruned), semantic.select(Selection(turned.source))):
        with pytest.raises(ValueError, match="expected all tokens of a grid, in the order of encode"):
            model.decode(wrong)
    with pytest.raises(ValueError, match=r"\[B, N, 8\], got \[2, 3, 5\]"):
        model.stream().step(torch.zeros(2, 3, 5))
    stream = model.stream()
    stream.step(latents(model, 3))
    with pytest.raises(ValueError, match="batch of 2"):
        stream.step(latents(model, 1, batch=3))


@pytest.mark.parametrize(
    ("stage", "setting", "message"),
    [
        ("low_level_encoder", {"depht": 2}, "did you mean depth"),
        ("low_level_encoder", {"embed_dim": 96}, "multiples of 64"),
        ("low_level_encoder", {"img_size": 25}, "multiples of patch_size"),
        ("low_level_encoder", {"out_dim": 7}, "embed_dim in multiples of"),
        ("semantic_decoder", {"in_dim": 16}, "takes? what the encoder gives"),
        ("semantic_decoder", {"ffn_layer": "relu"}, "ffn_layer one of"),
        ("pixel_decoder", {"patch_size": 3}, "divide patch_size=8"),
    ],
)
def test_settings_that_do_not_fit_are_refused(stage: str, setting: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        MingTok(**{**TINY, stage: {**TINY[stage], **setting}})


def test_a_setting_that_is_missing_is_named() -> None:
    with pytest.raises(TypeError, match=r"mingtok semantic_decoder: .*decoder_depth"):
        MingTok(**{**TINY, "semantic_decoder": {"in_dim": 8, "patch_size": 8, "embed_dim": 128}})
    with pytest.raises(ValueError, match="scaling_factor > 0"):
        MingTok(**{**TINY, "scaling_factor": 0.0})
