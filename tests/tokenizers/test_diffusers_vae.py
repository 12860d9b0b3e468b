"""Every autoencoder of diffusers through one adapter: what each class gets wrong when it is called naively."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import vistok
from vistok.layers.normalizer import NormalizedLatent, RawLatent
from vistok.tokenizers._diffusers_families import FAMILIES
from vistok.tokenizers.diffusers_vae import DiffusersVae
from vistok.weights import misfits

DOWN, UP = ["DownEncoderBlock2D"] * 3, ["UpDecoderBlock2D"] * 3
CONVS: dict[str, Any] = {
    "block_out_channels": [4, 4, 8], "down_block_types": DOWN, "up_block_types": UP, "norm_num_groups": 2,
}  # fmt: skip
VIDEO: dict[str, Any] = {
    "base_dim": 4, "z_dim": 2, "dim_mult": [1, 1, 1], "num_res_blocks": 1, "temperal_downsample": [False, False],
    "latents_mean": [0.5, -0.5], "latents_std": [2.0, 4.0],
}  # fmt: skip
TINY: dict[str, dict[str, Any]] = {
    "AutoencoderKL": {**CONVS, "latent_channels": 4, "scaling_factor": 0.25, "shift_factor": 0.1},
    "AsymmetricAutoencoderKL": {
        "down_block_out_channels": [4, 4, 8], "down_block_types": DOWN, "up_block_out_channels": [4, 4, 8],
        "up_block_types": UP, "norm_num_groups": 2, "scaling_factor": 0.25,
    },
    "AutoencoderKLTemporalDecoder": {"block_out_channels": [32, 32, 32], "down_block_types": DOWN},
    "AutoencoderDC": {
        "latent_channels": 4, "attention_head_dim": 4, "scaling_factor": 0.4,
        "encoder_block_types": ["ResBlock", "ResBlock", "EfficientViTBlock"],
        "decoder_block_types": ["ResBlock", "ResBlock", "EfficientViTBlock"],
        "encoder_block_out_channels": [4, 4, 8], "decoder_block_out_channels": [4, 4, 8],
        "encoder_layers_per_block": [1, 1, 1], "decoder_layers_per_block": [1, 1, 1],
        "encoder_qkv_multiscales": [[], [], [5]], "decoder_qkv_multiscales": [[], [], [5]],
    },
    "AutoencoderTiny": {
        "encoder_block_out_channels": [4, 4, 4], "decoder_block_out_channels": [4, 4, 4],
        "num_encoder_blocks": [1, 1, 1], "num_decoder_blocks": [1, 1, 1],
    },
    "AutoencoderRAE": {
        "encoder_hidden_size": 64, "encoder_patch_size": 14, "encoder_num_hidden_layers": 1, "decoder_hidden_size": 16,
        "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2, "decoder_intermediate_size": 16,
        "patch_size": 8, "encoder_input_size": 56,
    },
    "AutoencoderKLFlux2": {**CONVS, "latent_channels": 4, "layers_per_block": 1},
    "AutoencoderKLHunyuanImage": {
        "in_channels": 3, "out_channels": 3, "latent_channels": 8, "block_out_channels": [32, 32, 32],
        "layers_per_block": 1, "spatial_compression_ratio": 4, "sample_size": 32, "scaling_factor": 0.75,
    },
    "AutoencoderKLKVAE": {
        "channels": 32, "num_enc_blocks": 1, "num_dec_blocks": 1, "z_channels": 4, "ch_mult": [1, 1, 1],
    },
    "AutoencoderKLQwenImage": VIDEO,
    "AutoencoderKLWan": {**VIDEO, "scale_factor_spatial": 4},
    "AutoencoderKLCosmos": {
        "latent_channels": 2, "encoder_block_out_channels": [8] * 4, "decode_block_out_channels": [8] * 4,
        "attention_resolutions": [], "num_layers": 1, "resolution": 32,
        "latents_mean": [0.5, 9.0, -0.5, 9.0], "latents_std": [2.0, 9.0, 4.0, 9.0],
    },
}  # fmt: skip
STRIDES = dict.fromkeys(TINY, 4) | {"AutoencoderRAE": 8, "AutoencoderKLCosmos": 8}


SLOW = pytest.mark.slow
SIZES = [(60, 68), pytest.param((64, 64), marks=SLOW), pytest.param((257, 129), marks=SLOW)]


def build(kind: str, **settings: Any) -> DiffusersVae:
    config = {**TINY[kind], **settings.pop("vae", {})}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return DiffusersVae(vae={"method": kind, **config}, **settings)


def images_of(*size: int, seed: int = 0) -> Tensor:
    return torch.rand(*size, generator=torch.Generator().manual_seed(seed))


def embeds_of(model: DiffusersVae, images: Tensor, **options: Any) -> Tensor:
    embeds = model.encode(images, **options).embeds
    assert embeds is not None
    return embeds


@pytest.fixture(scope="module")
def models() -> dict[str, DiffusersVae]:
    return {kind: build(kind) for kind in TINY}


@pytest.fixture(scope="module")
def kl(models: dict[str, DiffusersVae]) -> DiffusersVae:
    return models["AutoencoderKL"]


def test_every_class_of_the_table_is_tested() -> None:
    assert set(TINY) == set(FAMILIES)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", TINY)
def test_an_image_comes_back_in_its_size(kind: str, size: tuple[int, int], models: dict[str, DiffusersVae]) -> None:
    model, images = models[kind], images_of(1, 3, *size)
    tokens = model.encode(images).check()
    square = (4, 4) if kind == "AutoencoderRAE" else None
    step = model.spec.patch
    assert tokens.spec.grid == (square or (-(-size[0] // step), -(-size[1] // step)))
    assert step == STRIDES[kind] * (2 if kind == "AutoencoderKLFlux2" else 1)
    back = model.decode(tokens)
    assert back.shape == images.shape and back.min() >= 0 and back.max() <= 1


@pytest.mark.parametrize("kind", TINY)
def test_tokens_are_what_the_library_computes_on_the_padded_image(kind: str, models: dict[str, DiffusersVae]) -> None:
    model, images = models[kind], images_of(2, 3, 24, 32)
    net = model.net
    given = images if kind == "AutoencoderRAE" else images * 2 - 1
    video = kind in ("AutoencoderKLQwenImage", "AutoencoderKLWan", "AutoencoderKLCosmos")
    with torch.no_grad():
        out = net.encode(given[:, :, None] if video else given)
    z = out.latent_dist.mode() if hasattr(out, "latent_dist") else out[0]
    z = z[:, :, 0] if video else z
    config, per = net.config, (1, -1, 1, 1)
    if kind == "AutoencoderKL":
        z = (z - 0.1) * 0.25
    elif kind == "AutoencoderKLFlux2":
        z = z.reshape(2, 4, 3, 2, 4, 2).permute(0, 1, 3, 5, 2, 4).reshape(2, 16, 3, 4)
    elif video:
        z = (z - torch.tensor([0.5, -0.5]).view(per)) / torch.tensor([2.0, 4.0]).view(per)
    elif kind not in ("AutoencoderTiny", "AutoencoderRAE", "AutoencoderKLKVAE"):
        z = z * config.scaling_factor
    torch.testing.assert_close(embeds_of(model, images), z.flatten(2).transpose(1, 2), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", TINY)
def test_a_folder_that_diffusers_saved_loads_by_its_path(kind: str, tmp_path: Path) -> None:
    model = build(kind)
    if kind == "AutoencoderKLFlux2":
        model.net.bn.running_mean.normal_(generator=torch.Generator().manual_seed(1))
        model.net.bn.running_var.fill_(4.0)
    model.net.save_pretrained(tmp_path)
    loaded: Any = vistok.tokenizer("diffusers_vae", checkpoint=tmp_path)
    ours, theirs = model.net.state_dict(), loaded.net.state_dict()
    assert ours.keys() == theirs.keys() and all(value.equal(theirs[name]) for name, value in ours.items())
    if kind == "AutoencoderKLFlux2":
        torch.testing.assert_close(loaded.normalizer.mean, model.net.bn.running_mean)
        torch.testing.assert_close(loaded.normalizer.std, torch.full((16,), 4.0001).sqrt())
    else:
        assert loaded.normalizer.mean.equal(model.normalizer.mean) and loaded.normalizer.std.equal(model.normalizer.std)


def test_a_folder_with_a_missing_or_surplus_tensor_is_refused(tmp_path: Path) -> None:
    model = build("AutoencoderTiny")
    model.net.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "num_encoder_blocks": [1, 1, 2]}))
    with pytest.raises(ValueError, match="does not fit DiffusersVae: missing net.encoder"):
        vistok.tokenizer("taesd", checkpoint=tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({**config, "_class_name": "AutoencoderVidTok"}))
    with pytest.raises(ValueError, match="no supported class 'AutoencoderVidTok'"):
        vistok.tokenizer("taesd", checkpoint=tmp_path)


def test_latents_are_normalized_once_by_type(kl: DiffusersVae) -> None:
    images = images_of(1, 3, 16, 16)
    raw = kl.latents(images)
    normal = kl.normalizer.normalize(raw)
    torch.testing.assert_close(normal.values, (raw.values - 0.1) * 0.25)
    tokens = kl.tokens(normal, (16, 16))
    assert tokens.embeds is not None and tokens.embeds.equal(embeds_of(kl, images))
    assert kl.decode(tokens).allclose(kl.pixels(raw, (16, 16)), atol=1e-5)
    wrong: Any = normal
    with pytest.raises(TypeError, match="expected RawLatent, got NormalizedLatent; it is applied once only"):
        kl.normalizer.normalize(wrong)
    with pytest.raises(TypeError, match="expected RawLatent, got NormalizedLatent"):
        kl.pixels(wrong)
    wrong = raw
    with pytest.raises(TypeError, match="expected NormalizedLatent, got RawLatent"):
        kl.tokens(wrong, (16, 16))
    for latent in (wrong, normal, raw.values):
        with pytest.raises(TypeError, match="expected a TokenTensor, got"):
            kl.decode(latent)


def test_statistics_are_read_from_each_kind_of_config() -> None:
    tiny = vistok.info("tokenizer", "flux_vae").tiny["vae"] | {"shift_factor": 0.1159, "scaling_factor": 0.3611}
    flux: Any = vistok.tokenizer("flux_vae", vae=tiny)
    assert float(flux.normalizer.mean[0]) == pytest.approx(0.1159)
    assert float(flux.normalizer.std[0]) == pytest.approx(1 / 0.3611)
    listed = build("AutoencoderKL", vae={"latents_mean": [1.0, 2, 3, 4], "latents_std": [1.0, 2, 4, 8]})
    assert listed.normalizer.mean.tolist() == [1, 2, 3, 4] and listed.normalizer.std.tolist() == [4, 8, 16, 32]
    none = build("AutoencoderKL", vae={"shift_factor": None, "scaling_factor": None})
    assert none.normalizer.mean.tolist() == [0] * 4 and none.normalizer.std.tolist() == [1] * 4
    halved = build("AutoencoderKLCosmos", scale=0.5)
    assert halved.normalizer.mean.tolist() == [0.5, -0.5] and halved.normalizer.std.tolist() == [4, 8]


def test_patches_of_latents_become_channels_and_come_back(models: dict[str, DiffusersVae]) -> None:
    one, two = models["AutoencoderKL"], build("AutoencoderKL", patch=2)
    images = images_of(1, 3, 16, 24)
    plain, folded = one.encode(images), two.encode(images)
    assert folded.spec.grid == (2, 3) and folded.spec.patch == 8 and folded.embeds is not None
    cells = plain.embeds.reshape(1, 4, 6, 4)
    assert folded.embeds[0, 1].equal(cells[0, :2, 2:4].permute(2, 0, 1).flatten())
    assert two.decode(folded).equal(one.decode(plain))
    odd = images_of(1, 3, 9, 17)
    assert two.decode(two.encode(odd)).shape == odd.shape and two.encode(odd).spec.grid == (2, 3)
    with pytest.raises(ValueError, match="patch to divide 4 latents a side, got 3"):
        build("AutoencoderRAE", patch=3)


def test_the_noise_of_an_image_does_not_depend_on_how_many_follow(kl: DiffusersVae) -> None:
    images = images_of(3, 3, 12, 20)

    def draw(count: int) -> Tensor:
        embeds = kl.encode(images[:count], sample=True, generator=torch.Generator().manual_seed(5)).embeds
        assert embeds is not None
        return embeds

    torch.testing.assert_close(draw(3)[:1], draw(1))
    torch.testing.assert_close(draw(3)[:2], draw(2))
    each = [torch.Generator().manual_seed(seed) for seed in (1, 2, 1)]
    embeds = embeds_of(kl, images[[0, 1, 0]], sample=True, generator=each)
    assert embeds is not None
    torch.testing.assert_close(embeds[0], embeds[2])
    with pytest.raises(ValueError, match="expected one generator or one per item, 2, got 1"):
        kl.encode(images[:2], sample=True, generator=each[:1])


def test_draws_spread_around_the_stored_mean_by_the_stored_variance(kl: DiffusersVae) -> None:
    images = images_of(1, 3, 16, 16)
    posterior = kl.posterior(images)
    many = kl.latents(images.expand(256, -1, -1, -1), sample=True, generator=torch.Generator().manual_seed(0)).values
    assert kl.latents(images).values.equal(posterior.mean)
    torch.testing.assert_close(many.std(0), posterior.logvar[0].mul(0.5).exp(), rtol=0.2, atol=0)


@pytest.mark.parametrize("kind", ["AutoencoderDC", "AutoencoderTiny", "AutoencoderRAE", "AutoencoderKLCosmos"])
def test_what_is_deterministic_has_nothing_to_draw_from(kind: str, models: dict[str, DiffusersVae]) -> None:
    with pytest.raises(ValueError, match=f"{kind} has no distribution"):
        models[kind].encode(images_of(1, 3, 16, 16), sample=True)
    with pytest.raises(ValueError, match=f"{kind} has no distribution"):
        models[kind].posterior(images_of(1, 3, 16, 16))


@pytest.mark.parametrize("kind", [kind for kind, family in FAMILIES.items() if family.tiles])
def test_tiling_is_off_unless_asked_for_and_is_recorded(kind: str, models: dict[str, DiffusersVae]) -> None:
    model = models[kind]
    tile = 8 * STRIDES[kind] * model.family.fold
    images = images_of(1, 3, tile * 3 // 2, tile + 1)
    whole, tiled = model.encode(images), model.encode(images, tile=tile)
    assert whole.spec.tile == 0 and tiled.spec.tile == tile and whole.spec.grid == tiled.spec.grid
    assert not tiled.embeds.allclose(whole.embeds, atol=1e-4)
    assert model.decode(tiled).shape == images.shape
    assert not model.decode(tiled).allclose(model.decode(tiled.replace(spec=whole.spec)), atol=1e-5)
    assert embeds_of(model, images).equal(whole.embeds)
    small = images[:, :, :tile, :tile]
    assert embeds_of(model, small, tile=tile).equal(embeds_of(model, small))
    with pytest.raises(
        ValueError, match=f"tile to be a multiple of {tile // 2} pixels, {tile} or more, got {tile + 4}"
    ):
        model.encode(images, tile=tile + 4)


@pytest.mark.parametrize("kind", [kind for kind, family in FAMILIES.items() if not family.tiles])
def test_a_class_without_tiling_says_so(kind: str, models: dict[str, DiffusersVae]) -> None:
    with pytest.raises(ValueError, match=f"tile=None, {kind} has no tiling of images"):
        models[kind].encode(images_of(1, 3, 32, 32), tile=64)


def test_a_sample_size_given_as_a_list_does_not_break_tiling() -> None:
    model = build("AutoencoderKL", vae={"sample_size": [32, 48]})
    assert model.encode(images_of(1, 3, 48, 40), tile=32).spec.tile == 32


def test_sixteen_channels_of_the_tiny_autoencoder_work_but_not_in_tiles() -> None:
    model = build("AutoencoderTiny", vae={"latent_channels": 16})
    images = images_of(1, 3, 33, 50)
    assert model.decode(model.encode(images)).shape == images.shape
    with pytest.raises(ValueError, match="tiles 4 channels only, not 16"):
        model.encode(images, tile=32)


def test_the_tiny_autoencoder_with_gradient_checkpointing_is_refused() -> None:
    model = build("AutoencoderTiny")
    model.net.enable_gradient_checkpointing()
    with pytest.raises(ValueError, match="another range of pixels with gradient checkpointing"):
        model.encode(images_of(1, 3, 16, 16))


def test_the_tiny_autoencoder_is_not_rounded_to_eight_bits(models: dict[str, DiffusersVae]) -> None:
    model, images = models["AutoencoderTiny"], images_of(1, 3, 16, 16)
    with torch.no_grad():
        quantised = model.net(images * 2 - 1).sample / 2 + 0.5
        exact = model.net.decode(model.net.encode(images * 2 - 1).latents).sample / 2 + 0.5
    back = model.decode(model.encode(images))
    torch.testing.assert_close(back, exact.clamp(0, 1))
    assert not back.allclose(quantised.clamp(0, 1), atol=1e-6)


def test_float16_keeps_float32_where_the_config_asks_for_it() -> None:
    images = images_of(2, 3, 16, 16)
    exact = build("AutoencoderKL", vae={"force_upcast": True})
    tokens = exact.encode(images)
    half = build("AutoencoderKL", vae={"force_upcast": True}).to(torch.float16)
    assert half.dtype == torch.float32 and half.to(torch.bfloat16).dtype == torch.bfloat16
    half = build("AutoencoderKL", vae={"force_upcast": True}).half()
    with torch.autocast("cpu", torch.bfloat16):
        assert embeds_of(half, images).equal(embeds_of(exact, images))
        assert half.decode(tokens).equal(exact.decode(tokens))
    free = build("AutoencoderKL", vae={"force_upcast": False}).to(torch.float16)
    assert free.dtype == torch.float16
    free = build("AutoencoderKL", vae={"force_upcast": False})
    with torch.autocast("cpu", torch.bfloat16):
        assert not embeds_of(free, images).equal(embeds_of(exact, images))


def test_an_overflow_is_named_by_image_and_has_a_remedy() -> None:
    model = build("AutoencoderKL", vae={"force_upcast": False})
    with torch.no_grad():
        model.net.quant_conv.weight.mul_(3e6)
        model.net.quant_conv.bias.zero_()
    images = images_of(3, 3, 16, 16)
    assert embeds_of(model, images).isfinite().all()
    bfloat = model.to(torch.bfloat16).encode(images.to(torch.bfloat16))
    assert bfloat.embeds.isfinite().all()
    with pytest.raises(ValueError, match=r"finite latents from torch.float16, .* images \[0, 1, 2\].*bfloat16"):
        model.to(torch.float16).encode(images.to(torch.float16))
    fine = build("AutoencoderKL")
    raw = fine.latents(images).values.clone()
    raw[1, 0, 0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"finite images from torch.float32, got others in images \[1\]"):
        fine.pixels(RawLatent(raw))


def test_networks_are_frozen_and_stay_in_evaluation(models: dict[str, DiffusersVae]) -> None:
    for model in models.values():
        assert not any(parameter.requires_grad for parameter in model.parameters())
        assert not model.train().net.training and model.training
        assert not embeds_of(model, images_of(1, 3, 16, 16)).requires_grad
        model.eval()
    tuned = build("AutoencoderKL", frozen=False)
    tuned.decode(tuned.encode(images_of(1, 3, 16, 16))).sum().backward()
    assert tuned.net.encoder.conv_in.weight.grad.abs().sum() > 0


def test_noise_of_the_decoders_training_never_reaches_tokens() -> None:
    model = build("AutoencoderRAE", vae={"noise_tau": 0.8}).train()
    images = images_of(1, 3, 16, 16)
    assert embeds_of(model, images).equal(embeds_of(model, images))


def test_an_encoder_that_its_library_cannot_build_is_named() -> None:
    with pytest.raises(ValueError, match="AutoencoderRAE with siglip2 does not build with the installed diffusers"):
        build("AutoencoderRAE", vae={"encoder_type": "siglip2"})
    assert build("AutoencoderRAE", vae={"encoder_type": "mae"}).dim == 64
    with pytest.raises(ValueError, match="AutoencoderKL refuses its config: .*unexpected keyword"):
        build("AutoencoderKL", vae={"wings": 2})


def test_tokens_of_part_of_a_grid_are_refused(kl: DiffusersVae) -> None:
    tokens = kl.encode(images_of(1, 3, 16, 16))
    with pytest.raises(ValueError, match=r"embeds of all tokens of a grid \(4, 4\)"):
        kl.decode(tokens.truncate(3))
    with pytest.raises(ValueError, match=r"expected 4 channels, got \[1, 4, 4, 6\]"):
        kl.tokens(NormalizedLatent(torch.zeros(1, 4, 4, 6)), (16, 16))
    with pytest.raises(ValueError, match="patch >= 1 and scale > 0"):
        build("AutoencoderKL", patch=0)


PRESETS = [name for name in vistok.list_tokenizers() if vistok.info("tokenizer", name).method == "diffusers_vae"]


@pytest.mark.slow
@pytest.mark.parametrize("name", PRESETS)
def test_the_published_config_builds_in_full_size(name: str) -> None:
    with torch.device("meta"):
        model: Any = vistok.tokenizer(name)
    assert sum(parameter.numel() for parameter in model.parameters()) > 1e6
    assert str(model.spec.patch) in vistok.info("tokenizer", name).summary or name in ("diffusers_vae", "rae_dinov2")
    assert f"{model.dim} channels" in vistok.info("tokenizer", name).summary or name == "diffusers_vae"


def test_names_of_attention_in_files_of_stable_diffusion_1_are_read() -> None:
    model = DiffusersVae(vae={"method": "AutoencoderKL", **TINY["AutoencoderKL"]})
    state = {name.removeprefix("net."): value for name, value in model.state_dict().items() if "net." in name}
    names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    old = dict(state)
    for new, before in names.items():
        old = {name.replace(f".{new}.", f".{before}."): value for name, value in old.items()}
    assert len(old.keys() - state.keys()) == 16
    renamed = model.rename_keys(old)
    assert misfits(model, renamed) == []
    assert all(value.equal(renamed[name]) for name, value in model.state_dict().items())
