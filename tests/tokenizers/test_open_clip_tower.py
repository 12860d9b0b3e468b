"""Towers of open_clip as tokenizers: the same numbers as open_clip, both kinds of tower, weights without the text."""

import json
from pathlib import Path
from typing import Any

import open_clip
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor

import vistok
from vistok.tokenizers.open_clip_tower import OpenClipTower

VISION: dict[str, Any] = {"layers": 3, "width": 32, "head_width": 16, "patch_size": 8, "image_size": 32}
TEXT: dict[str, Any] = {"context_length": 4, "vocab_size": 8, "width": 16, "heads": 2, "layers": 1}
TIMM: dict[str, Any] = {"timm_model_name": "test_vit", "timm_pool": "", "timm_proj": "none", "image_size": 32}
RESNET: dict[str, Any] = {"layers": [1, 1, 1, 1], "width": 8, "head_width": 8, "image_size": 64}


def build(vision: dict[str, Any], **settings: Any) -> OpenClipTower:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return OpenClipTower(model={"embed_dim": 16, "vision_cfg": vision}, **settings)


def images_of(*size: int) -> Tensor:
    return torch.rand(*size, generator=torch.Generator().manual_seed(0))


def standardized(images: Tensor) -> Tensor:
    known = (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in known)
    return (images - mean) / std


def embeds_of(model: OpenClipTower, images: Tensor) -> Tensor:
    embeds = model.encode(images).check().embeds
    assert embeds is not None
    return embeds


def test_the_last_layer_is_what_the_tower_returns_as_tokens() -> None:
    images = images_of(2, 3, 32, 32)
    model = build({**VISION, "output_tokens": True}, norm=True)
    with torch.no_grad():
        tokens = model.net(standardized(images))[1]
    torch.testing.assert_close(embeds_of(model, images), tokens, rtol=1e-5, atol=1e-5)
    assert model.encode(images).spec.grid == (4, 4) and model.net.output_tokens
    plain = build(VISION, norm=True)
    torch.testing.assert_close(embeds_of(plain, images), tokens, rtol=1e-5, atol=1e-5)
    assert plain.net.output_tokens is False


def test_the_class_token_comes_first_if_it_is_kept() -> None:
    images = images_of(2, 3, 32, 32)
    without, kept = build(VISION, layers=[1, 2]), build(VISION, layers=2, prefix=True)
    tokens = kept.encode(images).check()
    assert tokens.spec.prefix == 1 and tokens.num_slots == 17 and tokens.spec.dim == 64
    assert tokens.coords is not None and tokens.coords[0, :2].tolist() == [[-1, -1], [0, 0]]
    assert tokens.embeds is not None and tokens.embeds[:, 1:].equal(embeds_of(without, images))
    with torch.no_grad():
        hidden = kept.net._embeds(standardized(images))
        for block in kept.net.transformer.resblocks[:2]:
            hidden = block(hidden)
    torch.testing.assert_close(tokens.embeds[..., :32], hidden, rtol=1e-5, atol=1e-5)


def test_a_tower_of_timm_gives_the_features_of_its_trunk() -> None:
    images = images_of(1, 3, 32, 48)
    model = build(TIMM, norm=True, image_size=[32, 48], mean=[0.5] * 3, std=[0.5] * 3)
    with torch.no_grad():
        theirs = model.net.trunk.forward_features(images * 2 - 1)
    prefix = model.net.trunk.num_prefix_tokens
    torch.testing.assert_close(embeds_of(model, images), theirs[:, prefix:], rtol=1e-5, atol=1e-5)
    assert model.encode(images).spec.grid == (2, 3)
    assert build(TIMM, prefix=True).encode(images_of(1, 3, 32, 32)).spec.prefix == prefix == 1


def test_a_net_of_convolutions_gives_maps_but_no_normed_ones() -> None:
    model = build(RESNET, layers=[3])
    images = images_of(1, 3, 64, 64)
    with torch.no_grad():
        stem = model.net.layer2(model.net.layer1(model.net.stem(standardized(images))))
        maps = model.net.layer3(stem)
    assert model.patch == 16 and model.dim == maps.shape[1]
    torch.testing.assert_close(embeds_of(model, images), maps.flatten(2).mT, rtol=1e-5, atol=1e-5)
    assert [build(RESNET, layers=[layer]).encode(images).spec.grid[0] for layer in range(5)] == [16, 16, 8, 4, 2]
    with pytest.raises(ValueError, match="norm=False, the final norm of this tower is not made for layers"):
        build(RESNET, norm=True)


def test_an_attentional_pool_leaves_plain_layers_only() -> None:
    coca = {**VISION, "attentional_pool": True, "attn_pooler_queries": 4, "attn_pooler_heads": 2}
    assert embeds_of(build(coca), images_of(1, 3, 32, 32)).shape == (1, 16, 32)
    with pytest.raises(ValueError, match="norm=False, the final norm"):
        build(coca, norm=True)


def test_other_sizes_are_refused_with_the_remedy() -> None:
    with pytest.raises(ValueError, match="expected images of 32x32 pixels, got 40x32; use model.preprocess"):
        build(VISION).encode(images_of(1, 3, 40, 32))
    with pytest.raises(ValueError, match="no architecture 'ViT-B-33'; did you mean ViT-B-32"):
        OpenClipTower(architecture="ViT-B-33")
    with pytest.raises(ValueError, match="expected architecture=, or model= with embed_dim and vision_cfg"):
        OpenClipTower()


def save(folder: Path, vision: dict[str, Any], pictures: dict[str, Any]) -> Any:
    """A folder as open_clip's own export lays it out."""
    config = {"embed_dim": 16, "vision_cfg": vision, "text_cfg": TEXT}
    with torch.random.fork_rng():
        torch.manual_seed(1)
        theirs: Any = open_clip.CLIP(16, dict(vision), dict(TEXT)).eval()
    if hasattr(theirs.visual, "trunk"):
        theirs.visual.set_input_size(32)
    save_file(theirs.state_dict(), folder / "open_clip_model.safetensors")
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": pictures}))
    # Repositories hold the same weights for transformers, too.
    save_file({"vision_model.weight": torch.zeros(1)}, folder / "model.safetensors")
    (folder / "config.json").write_text('{"model_type": "clip"}')
    return theirs


@pytest.mark.parametrize("vision", [VISION, TIMM], ids=["own", "timm"])
def test_a_folder_of_open_clip_loads_without_its_text_tower(vision: dict[str, Any], tmp_path: Path) -> None:
    pictures = {"mean": [0.4] * 3, "std": [0.3] * 3, "resize_mode": "squash", "interpolation": "bilinear"}
    theirs = save(tmp_path, vision, pictures)
    loaded: Any = vistok.tokenizer("open_clip_tower", checkpoint=tmp_path)
    images = images_of(1, 3, 32, 32)
    with torch.no_grad():
        out = theirs.visual.forward_intermediates(
            (images - 0.4) / 0.3, indices=1, normalize_intermediates=True, intermediates_only=True
        )
    expected = out["image_intermediates"][0].flatten(2).mT
    torch.testing.assert_close(embeds_of(loaded, images), expected, rtol=1e-5, atol=1e-5)
    assert loaded.preprocess(images_of(3, 50, 70)).shape == (3, 32, 32)
    assert loaded.preprocess.interpolation == "bilinear" and loaded.preprocess.resize == (32, 32)


def test_positions_are_resampled_to_another_image_size(tmp_path: Path) -> None:
    theirs = save(tmp_path, VISION, {"mean": [0.5] * 3, "std": [0.5] * 3})
    loaded: Any = vistok.tokenizer("open_clip_tower", checkpoint=tmp_path, image_size=[32, 64])
    table, old = loaded.net.positional_embedding, theirs.visual.positional_embedding
    assert table.shape == (1 + 4 * 8, 32) and table[0].equal(old[0])
    assert loaded.encode(images_of(1, 3, 32, 64)).spec.grid == (4, 8)
    assert loaded.preprocess(images_of(3, 50, 70)).shape == (3, 32, 64)
    theirs = save(tmp_path, TIMM, {"mean": [0.5] * 3, "std": [0.5] * 3})
    loaded = vistok.tokenizer("open_clip_tower", checkpoint=tmp_path, image_size=[32, 64])
    assert loaded.net.trunk.pos_embed.shape == (1, 1 + 2 * 4, 64) and theirs.visual.trunk.pos_embed.shape == (1, 5, 64)
    assert loaded.encode(images_of(1, 3, 32, 64)).spec.grid == (2, 4)


def test_a_lone_file_needs_stated_statistics_and_any_other_key_is_refused(tmp_path: Path) -> None:
    theirs = save(tmp_path, VISION, {})
    settings: dict[str, Any] = {"architecture": None, "model": {"embed_dim": 16, "vision_cfg": VISION}}
    path = tmp_path / "alone" / "clip.safetensors"
    path.parent.mkdir()
    save_file(theirs.state_dict(), path)
    with pytest.raises(ValueError, match="which mean and std the weights were trained with"):
        vistok.tokenizer("open_clip_tower", checkpoint=path, mean=None, std=None, **settings)
    loaded: Any = vistok.tokenizer("open_clip_tower", checkpoint=path, **settings)
    assert loaded.net.conv1.weight.equal(theirs.visual.conv1.weight)
    save_file({**theirs.state_dict(), "surplus": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match="unexpected surplus"):
        vistok.tokenizer("open_clip_tower", checkpoint=path, **settings)


PRESETS = [name for name in vistok.list_tokenizers() if vistok.info("tokenizer", name).method == "open_clip_tower"]


@pytest.mark.slow
@pytest.mark.parametrize("name", PRESETS)
def test_the_published_architecture_builds_in_full_size(name: str) -> None:
    with torch.device("meta"):
        model: Any = vistok.tokenizer(name)
    summary = vistok.info("tokenizer", name).summary
    assert f"{model.patch}x{model.patch} pixels" in summary and f"{model.dim} features" in summary or name == model.name


def test_a_config_does_not_have_other_weights_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    create = timm.create_model
    monkeypatch.setattr(
        timm, "create_model", lambda name, pretrained=False, **kw: (asked.append(pretrained), create(name, **kw))[1]
    )
    build({**TIMM, "timm_model_pretrained": True})
    assert asked == [False]


def test_an_unknown_way_to_resize_is_refused_unless_pictures_are_stated(tmp_path: Path) -> None:
    save(tmp_path, VISION, {"mean": [0.5] * 3, "std": [0.5] * 3, "resize_mode": "longest"})
    with pytest.raises(ValueError, match="center, shortest or squash, got 'longest'; state preprocess="):
        vistok.tokenizer("open_clip_tower", checkpoint=tmp_path)
    loaded: Any = vistok.tokenizer("open_clip_tower", checkpoint=tmp_path, preprocess={"resize": [32, 32]})
    assert loaded.preprocess(images_of(3, 50, 70)).shape == (3, 32, 32)
