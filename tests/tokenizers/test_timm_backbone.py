"""timm backbones as tokenizers: the same numbers as timm, cells and prefixes where they belong, sizes, weights."""

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor

import vistok
from vistok.layers.preprocess import Preprocess
from vistok.tokenizers._features import fitted
from vistok.tokenizers.timm_backbone import TimmBackbone

VIT: dict[str, Any] = {"depth": 3, "embed_dim": 32, "num_heads": 2}
MODELS: dict[str, dict[str, Any]] = {
    "vit_small_patch14_reg4_dinov2.lvd142m": VIT,
    "vit_base_patch16_siglip_224.webli": VIT,
    "vit_small_patch16_dinov3.lvd1689m": {"depth": 2, "embed_dim": 96, "num_heads": 2},
    "deit_tiny_distilled_patch16_224.fb_in1k": VIT,
    "naflexvit_base_patch16_siglip.v2_webli": VIT,
    "convnext_tiny.fb_in22k_ft_in1k": {"depths": (1, 1, 1, 1), "dims": (8, 8, 16, 16)},
    "swin_tiny_patch4_window7_224.ms_in1k": {"depths": (1, 1, 1, 1), "embed_dim": 8, "num_heads": (1, 1, 1, 1)},
    "resnet50.a1_in1k": {"layers": (1, 1, 1, 1), "channels": (8, 8, 8, 8)},
    "fastvit_t8.apple_in1k": {"layers": (1, 1, 1, 1), "embed_dims": (8, 16, 16, 32)},
}
PREFIX = {"dinov2": 5, "dinov3": 5, "deit": 2}
DINO = "vit_small_patch14_reg4_dinov2.lvd142m"


def build(architecture: str, **settings: Any) -> TimmBackbone:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return TimmBackbone(**{"architecture": architecture, "model": MODELS.get(architecture), **settings})


def images_of(*size: int, seed: int = 0) -> Tensor:
    return torch.rand(*size, generator=torch.Generator().manual_seed(seed))


def embeds_of(model: TimmBackbone, images: Tensor) -> Tensor:
    embeds = model.encode(images).embeds
    assert embeds is not None
    return embeds


@pytest.fixture(scope="module")
def models() -> dict[str, TimmBackbone]:
    return {name: build(name) for name in MODELS}


@pytest.mark.parametrize(
    "size", [(60, 68), pytest.param((64, 64), marks=pytest.mark.slow), pytest.param((33, 100), marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("name", MODELS)
def test_images_of_any_size_give_a_grid_rounded_up(
    name: str, size: tuple[int, int], models: dict[str, TimmBackbone]
) -> None:
    model = models[name]
    tokens = model.encode(images_of(2, 3, *size)).check()
    rows, cols = (-(-side // model.patch) for side in size)
    assert tokens.spec.grid == (rows, cols) and tokens.spec.image_size == size and tokens.spec.prefix == 0
    assert tokens.embeds is not None and tokens.embeds.shape == (2, rows * cols, model.dim)
    assert tokens.coords is not None and tokens.coords[0].tolist() == [[r, c] for r in range(rows) for c in range(cols)]


@pytest.mark.parametrize("name", [DINO, "deit_tiny_distilled_patch16_224.fb_in1k", "vit_small_patch16_dinov3.lvd1689m"])
def test_the_last_layer_is_what_timm_computes_without_its_prefix(name: str) -> None:
    model = build(name, norm=True, prefix=True)
    side, count = 4 * model.patch, next(value for key, value in PREFIX.items() if key in name)
    images = images_of(2, 3, side, side)
    known = model.net.pretrained_cfg
    mean, std = (torch.tensor(known[part]).view(3, 1, 1) for part in ("mean", "std"))
    with torch.no_grad():
        theirs = model.net.forward_features((images - mean) / std)
    tokens = model.encode(images).check()
    assert tokens.embeds is not None and tokens.coords is not None
    assert tokens.spec.prefix == count and tokens.num_slots == count + 16
    torch.testing.assert_close(tokens.embeds, theirs, rtol=1e-5, atol=1e-5)
    assert (tokens.coords[:, :count] == -1).all() and tokens.coords[0, count].tolist() == [0, 0]
    without = build(name, norm=True)
    torch.testing.assert_close(embeds_of(without, images), theirs[:, count:], rtol=1e-5, atol=1e-5)
    assert not embeds_of(build(name), images).allclose(theirs[:, count:], atol=1e-3)


@pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224.ms_in1k", "resnet50.a1_in1k", "fastvit_t8.apple_in1k"])
def test_maps_of_every_layout_come_in_raster_order(name: str, models: dict[str, TimmBackbone]) -> None:
    model = models[name]
    images = images_of(1, 3, 64, 96)
    known = model.net.pretrained_cfg
    mean, std = (torch.tensor(known[part]).view(3, 1, 1) for part in ("mean", "std"))
    with torch.no_grad():
        maps = model.net.forward_intermediates((images - mean) / std, indices=1, intermediates_only=True)[0]
    assert maps.shape == (1, model.dim, 2, 3) and model.dim == model.net.feature_info[-1]["num_chs"]
    torch.testing.assert_close(embeds_of(model, images)[0, 4], maps[0, :, 1, 1], rtol=1e-5, atol=1e-5)


def test_layers_stand_side_by_side_as_channels() -> None:
    images = images_of(1, 3, 28, 42)
    first, last, both = (build(DINO, layers=layers, prefix=True) for layers in ([0], [-1], [0, 2]))
    assert both.dim == 64 and both.layers == [0, 2]
    torch.testing.assert_close(
        embeds_of(both, images), torch.cat([embeds_of(first, images), embeds_of(last, images)], 2)
    )
    assert build(DINO, layers=2).layers == [1, 2] and build(DINO, layers=[-2]).layers == [1]
    early = build("convnext_tiny.fb_in22k_ft_in1k", layers=[1])
    assert early.patch == 8 and early.encode(images).spec.grid == (4, 6)
    with pytest.raises(ValueError, match=r"layers of one stride, got \[4, 8\]"):
        build("convnext_tiny.fb_in22k_ft_in1k", layers=[0, 1])
    for layers in (4, 0, [3], [-4], [1, 0], [], [1, 1]):
        with pytest.raises(ValueError, match="expected layers to"):
            build(DINO, layers=layers)


def test_a_fixed_size_resamples_positions_and_refuses_others(models: dict[str, TimmBackbone]) -> None:
    fixed = build(DINO, image_size=[28, 42])
    images = images_of(1, 3, 28, 42)
    assert "any_size" in fixed.cannot and "any_size" not in models[DINO].cannot
    assert fixed.spec.image_size == (28, 42) and fixed.encode(images).spec.grid == (2, 3)
    assert fixed.net.pos_embed.shape[1] == 6 and models[DINO].net.pos_embed.shape[1] == 37 * 37
    with pytest.raises(ValueError, match="expected images of 28x42 pixels, got 42x28; use model.preprocess"):
        fixed.encode(images_of(1, 3, 42, 28))
    net = build("resnet50.a1_in1k", image_size=[32, 64])
    assert net.encode(images_of(1, 3, 32, 64)).spec.grid == (1, 2)


def test_an_architecture_of_one_size_says_which() -> None:
    cait = build("cait_xxs24_224.fb_dist_in1k", model=VIT)
    assert cait.image_size == (224, 224) and "any_size" in cait.cannot
    with pytest.raises(ValueError, match="expected images of 224x224 pixels, got 64x64"):
        cait.encode(images_of(1, 3, 64, 64))
    small = build("cait_xxs24_224.fb_dist_in1k", model={**VIT, "img_size": 32})
    assert small.encode(images_of(1, 3, 32, 32)).spec.grid == (2, 2)


def test_hiera_has_layers_of_one_size_without_a_norm() -> None:
    name, tiny = "hiera_tiny_224.mae_in1k_ft_in1k", {"embed_dim": 16, "num_heads": 1, "stages": (1, 1, 1, 1)}
    model = build(name, image_size=[64, 64], model=tiny)
    assert model.encode(images_of(1, 3, 64, 64)).spec.grid == (2, 2) and model.dim == 128
    with pytest.raises(ValueError, match="norm=False, hiera_tiny_224.mae_in1k_ft_in1k has no final norm"):
        build(name, norm=True, model=tiny)
    assert build(name, model=tiny).image_size == (224, 224)


def test_the_weights_own_pictures_and_pixels_are_used(models: dict[str, TimmBackbone]) -> None:
    dino, siglip = models[DINO], models["vit_base_patch16_siglip_224.webli"]
    assert dino.mean == [0.485, 0.456, 0.406] and siglip.mean == [0.5, 0.5, 0.5]
    assert dino.preprocess(images_of(3, 600, 800)).shape == (3, 518, 518)
    assert models["resnet50.a1_in1k"].preprocess.resize == 235  # 224 / 0.95
    stated = build(DINO, mean=[0.1, 0.2, 0.3], std=[1.0, 1.0, 1.0], preprocess={})
    images = images_of(1, 3, 28, 28)
    shifted = build(DINO, mean=[0.0, 0.0, 0.0], std=[1.0, 1.0, 1.0])
    moved = images - torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1)
    with torch.no_grad():
        theirs = shifted.net.forward_intermediates(moved, indices=1, intermediates_only=True)[0].flatten(2).mT
    torch.testing.assert_close(embeds_of(stated, images), theirs, rtol=1e-5, atol=1e-5)
    assert stated.preprocess(images_of(3, 50, 60)).shape == (3, 50, 60)


@pytest.mark.parametrize("name", [DINO, "convnext_tiny.fb_in22k_ft_in1k", "swin_tiny_patch4_window7_224.ms_in1k"])
def test_a_folder_in_timms_layout_loads_without_its_classifier(name: str, tmp_path: Path) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        theirs = timm.create_model(name, num_classes=7, **MODELS[name]).eval()
    timm.models.save_for_hf(theirs, str(tmp_path), safe_serialization="both")
    loaded: Any = vistok.tokenizer("timm_backbone", checkpoint=tmp_path)
    assert loaded.architecture == name and loaded.stated
    images = images_of(1, 3, 224, 224) if "dinov2" not in name else images_of(1, 3, 518, 518)
    mean, std = (torch.tensor(theirs.pretrained_cfg[part]).view(3, 1, 1) for part in ("mean", "std"))
    with torch.no_grad():
        maps = theirs.forward_intermediates((images - mean) / std, indices=1, norm=True, intermediates_only=True)[0]
    torch.testing.assert_close(embeds_of(loaded, images), maps.flatten(2).mT, rtol=1e-4, atol=1e-4)
    config = json.loads((tmp_path / "config.json").read_text())
    config["model_args"] = {key: value for key, value in config["model_args"].items() if key not in ("depth", "depths")}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="does not fit TimmBackbone: missing net."):
        vistok.tokenizer("timm_backbone", checkpoint=tmp_path)


def test_a_lone_file_needs_a_tag_or_stated_statistics(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"model": VIT, "image_size": [28, 28], "preprocess": {}}
    theirs = build(DINO, **settings)
    path = tmp_path / "weights.pth"
    torch.save({**theirs.net.state_dict(), "head.weight": torch.zeros(7, 32), "head.bias": torch.zeros(7)}, path)
    bare = "vit_small_patch14_reg4_dinov2"
    for known in ({"architecture": DINO}, {"architecture": bare, "mean": [0.5] * 3, "std": [0.5] * 3}):
        loaded: Any = vistok.tokenizer("timm_backbone", checkpoint=path, **settings, **known)
        assert all(value.equal(theirs.state_dict()[name]) for name, value in loaded.state_dict().items())
    with pytest.raises(ValueError, match="which mean and std the weights of 'vit_small_patch14_reg4_dinov2'"):
        vistok.tokenizer("timm_backbone", checkpoint=path, architecture=bare, **settings)
    torch.save({**theirs.net.state_dict(), "neck.weight": torch.zeros(7)}, path)
    with pytest.raises(ValueError, match="unexpected net.neck.weight"):
        vistok.tokenizer("timm_backbone", checkpoint=path, architecture=DINO, **settings)


def test_unknown_names_and_overflows_are_named() -> None:
    with pytest.raises(ValueError, match="timm has no 'vit_smal_patch14_reg4'; did you mean vit_"):
        build("vit_smal_patch14_reg4")
    model = build(DINO)
    with torch.no_grad():
        model.net.patch_embed.proj.weight.mul_(1e38)
    images = images_of(2, 3, 28, 28)
    images[0] = torch.tensor(model.mean).view(3, 1, 1)
    with pytest.raises(ValueError, match=r"finite features from torch.float32, got others in images \[.*1\]"):
        model.encode(images)


def test_networks_are_frozen_and_stay_in_evaluation(models: dict[str, TimmBackbone]) -> None:
    for model in models.values():
        assert not any(parameter.requires_grad for parameter in model.parameters()) and not model.train().net.training
    tuned = build(DINO, frozen=False)
    embeds_of(tuned, images_of(1, 3, 28, 28)).sum().backward()
    assert tuned.net.patch_embed.proj.weight.grad is not None


PRESETS = [name for name in vistok.list_tokenizers() if vistok.info("tokenizer", name).method == "timm_backbone"]


@pytest.mark.slow
@pytest.mark.parametrize("name", PRESETS)
def test_the_published_architecture_builds_in_full_size(name: str) -> None:
    with torch.device("meta"):
        model: Any = vistok.tokenizer(name)
    summary = vistok.info("tokenizer", name).summary
    assert f"{model.patch}x{model.patch} pixels" in summary and f"{model.dim} features" in summary or name == model.name


def test_weights_of_another_network_are_named(tmp_path: Path) -> None:
    torch.save({"blocks.0.attn.qkv.weight": torch.zeros(4, 4)}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match=r"missing net\.stem.*"):
        vistok.tokenizer(
            "convnext_tiny", model=MODELS["convnext_tiny.fb_in22k_ft_in1k"], checkpoint=tmp_path / "other.pt"
        )


def test_clip_of_openai_has_the_activation_that_it_was_trained_with() -> None:
    model: Any = vistok.tokenizer("clip_l14_336", **vistok.info("tokenizer", "clip_l14_336").tiny)
    x = torch.linspace(-3, 3, 7)
    torch.testing.assert_close(model.net.blocks[0].mlp.act(x), x * torch.sigmoid(1.702 * x))


def test_another_image_size_changes_the_pictures_that_a_folder_states(tmp_path: Path) -> None:
    with torch.random.fork_rng():
        theirs = timm.create_model(DINO, num_classes=7, **VIT).eval()
    timm.models.save_for_hf(theirs, str(tmp_path), safe_serialization=True)
    for size in ([28, 28], [28, 42]):
        loaded: Any = vistok.tokenizer("timm_backbone", checkpoint=tmp_path, image_size=size)
        picture = loaded.preprocess(images_of(3, 50, 70))
        assert list(picture.shape[1:]) == size and loaded.encode(picture[None]).num_slots == size[1] // 7


@pytest.mark.parametrize(
    ("stated", "size", "expected"),
    [
        ({"resize": 256, "crop": 224}, (336, 336), {"resize": 384, "crop": 336}),
        ({"resize": [256, 256], "crop": 224}, (448, 448), {"resize": [512, 512], "crop": 448}),
        (
            {"resize": 256, "crop": 224, "interpolation": "bilinear"},
            (2, 3),
            {"resize": [2, 3], "interpolation": "bilinear"},
        ),
        ({"resize": [32, 48]}, (32, 48), {"resize": [32, 48]}),
        ({"crop": 224}, (448, 448), {"resize": 448, "crop": 448}),
        ({"resize": 256, "crop": 224}, None, {"resize": 256, "crop": 224}),
        ({}, (32, 32), {}),
    ],
)
def test_pictures_are_fitted_to_a_size(
    stated: dict[str, Any], size: tuple[int, int] | None, expected: dict[str, Any]
) -> None:
    assert fitted(stated, size) == Preprocess(**expected)


def test_a_folder_does_not_decide_what_else_is_fetched_or_read() -> None:
    others = {"pretrained": True, "checkpoint_path": "/other.pth", "cache_dir": "/", "pretrained_cfg": {"file": "/x"}}
    known = {"tag": "lvd142m", "mean": [0.5] * 3, "std": [0.5] * 3, "input_size": [3, 28, 28]}
    stored = {"architecture": "vit_small_patch14_reg4_dinov2", "pretrained_cfg": known, "num_classes": 3}
    arguments = {**VIT, **others, "pretrained_cfg_overlay": {"file": "/x"}, "num_classes": 3}
    assert TimmBackbone.rename_settings({**stored, "model_args": arguments})["model"] == VIT


def test_an_unknown_way_to_crop_is_refused_unless_pictures_are_stated(tmp_path: Path) -> None:
    with torch.random.fork_rng():
        theirs = timm.create_model(DINO, num_classes=7, **VIT).eval()
    timm.models.save_for_hf(theirs, str(tmp_path), safe_serialization=True)
    config = json.loads((tmp_path / "config.json").read_text())
    config["pretrained_cfg"]["crop_mode"] = "border"
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="center, shortest or squash, got 'border'; state preprocess="):
        vistok.tokenizer("timm_backbone", checkpoint=tmp_path)
    loaded: Any = vistok.tokenizer("timm_backbone", checkpoint=tmp_path, preprocess={"resize": 28, "crop": 28})
    assert loaded.preprocess.crop == 28
