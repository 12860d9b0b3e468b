"""MingTok and its rectified-flow head against the original authors' code, every case of every file."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from vistok.layers.flow_sampler import Guidance, sample
from vistok.layers.mingtok_stages import spread
from vistok.layers.patchify import patchify, unpatchify
from vistok.layers.rectified_flow import RectifiedFlowHead
from vistok.tokenizers.mingtok import MingTok, grid_of_pixels
from vistok.train.mingtok_losses import pixel_loss

from .conftest import Case, read

KINDS = {"low_level_encoder": "mingtok", "target_channels": "rf_head"}


def kind_of(config: dict[str, Any]) -> str:
    found = [kind for key, kind in KINDS.items() if key in config]
    if len(found) != 1:
        raise ValueError(f"a file of an unknown kind: config {sorted(config)}")
    return found[0]


def inputs_of(kind: str) -> Any:
    """Files of a kind that hold inputs and outputs, not weights: those have a partner whose name says `weights`."""
    return lambda config: kind_of(config) == kind


def cases_of(path: Path) -> dict[str, dict[str, Any]]:
    with safe_open(path, framework="pt") as file:
        cases: dict[str, dict[str, Any]] = json.loads(file.metadata()["cases"])
    assert cases
    return cases


def weights_of(path: Path) -> dict[str, Tensor]:
    return read(path.with_name(path.name.replace("_io", "_weights"))).tensors


def close(actual: Tensor, expected: Tensor) -> None:
    assert actual.shape == expected.shape
    torch.testing.assert_close(actual, expected, rtol=1e-3, atol=2e-4)


def mingtok(path: Path, config: dict[str, Any]) -> MingTok:
    model = MingTok(**config)
    model.load_state_dict(model.rename_keys(weights_of(path)))
    return model.eval()


@pytest.mark.parity("continuous/*_io.safetensors", inputs_of("mingtok"))
@torch.no_grad()
def test_continuous_stages_are_the_original(case: Case, path: Path) -> None:
    model = mingtok(path, case.config)
    for name, settings in cases_of(path).items():
        data = {key.removeprefix(f"{name}."): value for key, value in case.tensors.items() if key.startswith(name)}
        pixels = data["pixels"]
        assert list(pixels.shape) == [settings["batch"], 3, settings["height"], settings["width"]]
        encoder, decoder = model.low_level_encoder, model.semantic_decoder
        close(encoder.embed(pixels), data["encoder_tokens_with_pos"])
        raw = encoder(pixels)
        close(raw, data["latent_raw"])
        latents = model.latents((pixels + 1) / 2)
        close(torch.cat([latents.patches, latents.cls], 1), data["latent_normalised"])
        close(decoder.embed(raw), data["sem_in_proj"])
        close(decoder(raw), data["sem_all_normed"])
        features = model.semantic_features(torch.cat([latents.patches, latents.cls], 1), has_cls=True)
        assert features.cls is not None
        close(features.patches, data["sem_patch"])
        close(features.cls, data["sem_cls"])
        assert settings["pixel_stage"] == ("recon" in data)
        if settings["pixel_stage"]:
            check_pixels(model, features.patches, latents.grid, data)
            tokens = model.encode((pixels + 1) / 2)
            close(model.decode(tokens), (data["recon"] + 1) / 2)
            close(model.decode(model.semantic(tokens)), (data["recon"] + 1) / 2)


def check_pixels(model: MingTok, semantic: Tensor, grid: tuple[int, int], data: dict[str, Tensor]) -> None:
    factor = model.spread_factor
    close(spread(model.sem_to_pix(semantic), grid, factor), data["pixel_tokens_in"])
    patches = model.pixel_patches(semantic, grid)
    close(patches, data["pixel_head"])
    images = unpatchify(patches, grid_of_pixels(grid, factor))
    close(images, data["recon_preclamp"])
    close(images.clamp(-1, 1), data["recon"])


@pytest.mark.parity("continuous/*_io.safetensors", inputs_of("mingtok"))
@torch.no_grad()
def test_continuous_stream_is_the_original_and_the_full_pass(case: Case, path: Path) -> None:
    model = mingtok(path, case.config)
    recorded = {name: value for name, value in case.tensors.items() if name.endswith(".sem_incremental")}
    assert recorded
    for name, expected in recorded.items():
        z = case.tensors[name.replace("sem_incremental", "latent_normalised")][:, :-1]
        close(model.semantic_features(z).patches, expected)
        for chunks in ([1] * z.shape[1], [z.shape[1] - 3, 1, 2]):
            stream = model.stream()
            close(torch.cat([stream.step(part) for part in z.split(chunks, 1)], 1), expected)


LOSSES = {
    "l1_plain": ("L1-plain", False),
    "l1_plain_masked": ("L1-plain", False),
    "l2_normpix": ("L2", True),
    "l1": ("L1", False),
    "l1_tanh": ("L1-tanh", False),
}


@pytest.mark.parity("continuous/*_io.safetensors", inputs_of("mingtok"))
def test_continuous_losses_are_the_original(case: Case, path: Path) -> None:
    model, data = MingTok(**case.config), case.tensors
    native = next(name for name in cases_of(path) if f"{name}.sem_incremental" in data)
    pixels, prediction = data[f"{native}.pixels"], data[f"{native}.pixel_head"]
    patch, factor = model.pixel_decoder.patch_size, model.spread_factor
    assert torch.equal(patchify(pixels, patch), data["patchify.target"])
    grid = model.low_level_encoder.grid(pixels)
    masked = data["loss.mask_true_is_masked"].bool()
    named = {name.removeprefix("loss."): value for name, value in data.items() if name.startswith("loss.")}
    named.pop("mask_true_is_masked")
    for name, expected in named.items():
        kind, normalize = LOSSES[name]
        hidden = spread(masked[..., None].repeat(1, 1, factor**2), grid, factor)[..., 0] if "masked" in name else None
        loss = pixel_loss(kind)(prediction, patchify(pixels, patch), masked=hidden, normalize=normalize)
        close(loss, expected)


@pytest.mark.parity("continuous/*_io.safetensors", inputs_of("rf_head"))
@torch.no_grad()
def test_continuous_head_is_the_original(case: Case, path: Path) -> None:
    head, data = rf_head(path, case.config), case.tensors
    close(head.net.time_embed(data["fwd.t"]), data["fwd.t_embed"])
    close(head(data["fwd.x"], data["fwd.t"], data["fwd.c"]), data["fwd.v"])


@pytest.mark.parity("continuous/*_io.safetensors", inputs_of("rf_head"))
@torch.no_grad()
def test_continuous_samples_are_the_original(case: Case, path: Path) -> None:
    head, data = rf_head(path, case.config), case.tensors
    for name, settings in cases_of(path).items():
        z, noise, expected = (data[f"{name}.{field}"] for field in ("z", "noise", "sample"))
        rows = 1 if settings.get("text_cfg", 1) == 1 else 2 if settings.get("image_cfg", 1) == 1 else 3
        renormalize = {"channel": True, None: False}[settings.get("cfg_renorm_type")]
        found = sample(
            head,
            z.unflatten(0, (rows, -1)),
            noise.unflatten(0, (rows, -1))[0],
            Guidance(settings.get("text_cfg", 1.0), settings.get("image_cfg", 1.0), renormalize),
            steps=case.config["num_sampling_steps"],
            time_shift=settings.get("time_shifting_factor", 1.0),
        )
        for row in expected.unflatten(0, (rows, -1)):
            close(found, row)


def rf_head(path: Path, config: dict[str, Any]) -> RectifiedFlowHead:
    head = RectifiedFlowHead(
        channels=config["target_channels"],
        condition=config["z_channels"],
        width=config["width"],
        depth=config["depth"],
        mlp_ratio=config["mlp_mult"],
    )
    head.load_state_dict(weights_of(path))
    return head.eval()


@pytest.mark.parity("continuous/*.safetensors", lambda config: True)
def test_continuous_file_is_of_a_known_kind_and_has_its_partner(case: Case, path: Path) -> None:
    assert kind_of(case.config)
    assert path.stem.endswith(("_io", "_weights"))
    other = {"_io": "_weights", "_weights": "_io"}
    suffix = next(suffix for suffix in other if path.stem.endswith(suffix))
    assert path.with_name(path.name.replace(suffix, other[suffix])).is_file()
