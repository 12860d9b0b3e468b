"""The convolutional autoencoder: tiles without seams in bounded memory, Gaussian head, normaliser, settings."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import vistok
from vistok.layers.gaussian import Gaussian
from vistok.tokenizers.autoencoder import Autoencoder
from vistok.tokens import TokenTensor

PATCH = 4


def build(kind: str, **changes: Any) -> Autoencoder:
    """A tiny model whose blocks do much more than at the start of training, so that a missing halo shows."""
    heads: dict[str, dict[str, Any]] = {
        "vq": {"quantizer": {"method": "fsq", "levels": [5, 4, 3]}},
        "kl": {"latent_channels": 6},
    }
    settings: dict[str, Any] = {
        "patch": PATCH,
        "width": 8,
        "fine_width": 4,
        "encoder_blocks": 1,
        "decoder_blocks": 1,
        "fine_blocks": 1,
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Autoencoder(**{**settings, **heads[kind], **changes}).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "conv2.weight" in name:
                parameter.mul_(10)
    return model


def images(height: int, width: int, batch: int = 2) -> Tensor:
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(height * width))


def untiled(tokens: TokenTensor) -> TokenTensor:
    return tokens.replace(spec=replace(tokens.spec, tile=0))


TILINGS = [((21, 30), 4), ((37, 50), 16), ((37, 50), 20), ((64, 96), 32), ((101, 30), 40), ((40, 40), 512), ((3, 5), 4)]


@pytest.mark.parametrize(("size", "tile"), TILINGS)
@pytest.mark.parametrize("kind", ["vq", "kl"])
@torch.no_grad()
def test_tiles_give_the_tokens_and_pixels_of_the_whole_image(kind: str, size: tuple[int, int], tile: int) -> None:
    model = build(kind)
    whole, tiled = model.encode(images(*size)), model.encode(images(*size), tile=tile)
    assert (whole.spec.tile, tiled.spec.tile) == (0, tile)
    assert untiled(tiled).spec == whole.spec
    assert whole.embeds is not None and tiled.embeds is not None
    torch.testing.assert_close(tiled.embeds, whole.embeds, rtol=0, atol=1e-3)
    if kind == "vq":
        assert tiled.indices is not None and whole.indices is not None
        assert torch.equal(tiled.indices, whole.indices)
    pixels = model.decode(tiled)
    assert pixels.shape[2:] == size
    torch.testing.assert_close(pixels, model.decode(untiled(tiled)), rtol=0, atol=1e-3)


@torch.no_grad()
def test_one_position_less_of_overlap_leaves_a_seam() -> None:
    model, picture = build("kl"), images(64, 64)
    whole, reach = model.encode(picture), model._encoder_reach
    pixels = model.decode(whole)
    model._encoder_reach = reach - 1
    seamed = model.encode(picture, tile=16)
    assert whole.embeds is not None and seamed.embeds is not None
    assert (seamed.embeds - whole.embeds).abs().max() > 1e-3
    model._decoder_reach -= 1
    tiled = whole.replace(spec=replace(whole.spec, tile=16))
    assert (model.decode(tiled) - pixels).abs().max() > 1e-4


@torch.no_grad()
def test_tiles_bound_what_a_layer_sees_whatever_the_image() -> None:
    model = build("kl")
    seen: list[int] = []

    def record(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        seen.append(args[0].numel())

    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_pre_hook(record)
    largest = []
    for side in (128, 256):
        seen.clear()
        model.decode(model.encode(images(side, side, batch=1), tile=32))
        largest.append(max(seen))
    assert largest[0] == largest[1]
    seen.clear()
    model.decode(model.encode(images(256, 256, batch=1)))
    assert max(seen) > 4 * largest[1]


@pytest.mark.parametrize("tile", [0, -4, 3, 6])
def test_a_tile_that_is_no_multiple_of_the_patch_is_refused(tile: int) -> None:
    with pytest.raises(ValueError, match=f"expected tile to be a positive multiple of 4, got {tile}"):
        build("kl").encode(images(16, 16), tile=tile)


def test_gradients_reach_the_image_through_tiles() -> None:
    model, picture = build("kl"), images(24, 24, batch=1).requires_grad_()
    grads = []
    for tile in (None, 8):
        tokens = model.encode(picture, tile=tile)
        grads.append(torch.autograd.grad(model.decode(tokens).square().sum(), picture)[0])
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-3, atol=1e-3)
    assert grads[0].abs().sum() > 0


@torch.no_grad()
def test_without_sampling_the_latent_is_the_mean_and_with_it_the_generator_decides() -> None:
    model, picture = build("kl"), images(16, 24)
    posterior = Gaussian.from_moments(model._moments(picture).flatten(1, 2))
    plain = model.encode(picture).embeds
    assert plain is not None and torch.equal(plain, posterior.mean)
    draws = [
        model.encode(picture, sample=True, generator=torch.Generator().manual_seed(seed)).embeds for seed in (0, 0, 1)
    ]
    noise = torch.randn(posterior.mean.shape, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(draws[0], posterior.mean + posterior.logvar.mul(0.5).exp() * noise)
    assert torch.equal(draws[0], draws[1])  # type: ignore[arg-type]
    assert not torch.equal(draws[0], draws[2])  # type: ignore[arg-type]


def test_the_training_loss_is_the_weighted_divergence() -> None:
    model, picture = build("kl", kl_weight=0.25), images(16, 16)
    out = model(picture)
    kl = Gaussian.from_moments(model._moments(picture)).kl()
    torch.testing.assert_close(out.loss, 0.25 * kl)
    torch.testing.assert_close(out.stats["kl"], kl)
    assert not out.stats["kl"].requires_grad
    assert out.images.shape == picture.shape


@torch.no_grad()
def test_latent_statistics_normalise_tokens_and_leave_the_pixels_alone() -> None:
    model, picture = build("kl"), images(32, 32, batch=4)
    raw = model.encode(picture)
    pixels = model.decode(raw)
    assert raw.embeds is not None
    model.set_latent_statistics(raw.embeds.mean((0, 1)), raw.embeds.std((0, 1)))
    tokens = model.encode(picture)
    assert tokens.embeds is not None
    torch.testing.assert_close(tokens.embeds.mean((0, 1)), torch.zeros(6), rtol=0, atol=1e-4)
    torch.testing.assert_close(tokens.embeds.std((0, 1)), torch.ones(6), rtol=0, atol=1e-4)
    torch.testing.assert_close(model.decode(tokens), pixels, rtol=0, atol=1e-5)
    other = build("kl")
    other.load_state_dict(model.state_dict())
    assert torch.equal(other.encode(picture).embeds, tokens.embeds)  # type: ignore[arg-type]


def test_a_discrete_model_has_no_latent_statistics() -> None:
    with pytest.raises(ValueError, match="expected a continuous autoencoder"):
        build("vq").set_latent_statistics(torch.zeros(3), torch.ones(3))


def test_tokens_missing_from_the_grid_are_not_decoded() -> None:
    tokens = build("kl").encode(images(16, 16))
    with pytest.raises(ValueError, match=r"expected all tokens of a grid \(4, 4\), got N=7"):
        build("kl").decode(tokens.truncate(7))


def test_coords_are_the_cells_of_the_grid() -> None:
    tokens = build("vq").encode(images(9, 12))
    assert tokens.spec.grid == (3, 3) and tokens.spec.image_size == (9, 12)
    assert tokens.coords is not None and tokens.coords[1, 5].tolist() == [1, 2]


def test_tokens_depend_on_their_surroundings_only() -> None:
    model = build("kl")
    picture = images(64, 64, batch=1)
    changed = picture.clone()
    changed[:, :, :4, :4] = 1 - changed[:, :, :4, :4]
    a, b = model.encode(picture).embeds, model.encode(changed).embeds
    assert a is not None and b is not None
    moved = ((a - b).abs().amax(2) > 0).reshape(16, 16)
    reach = model._encoder_reach
    assert moved[: reach + 1, : reach + 1].all()
    assert not moved[reach + 1 :].any() and not moved[:, reach + 1 :].any()


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({}, ValueError, r"expected either quantizer= \(discrete\) or latent_channels="),
        ({"quantizer": {"method": "fsq"}, "latent_channels": 4}, ValueError, "expected either quantizer="),
        ({"quantizer": {"levels": [4, 4]}}, ValueError, r"expected quantizer to have a method.*levels"),
        ({"quantizer": {"method": "fsk"}}, KeyError, "did you mean fsq"),
        ({"quantizer": {"method": "fsq", "level": [4]}}, TypeError, "did you mean levels"),
        ({"latent_channels": 4, "patch": 5}, ValueError, "expected an even patch >= 2, got 5"),
        ({"latent_channels": 4, "patch": 0}, ValueError, "expected an even patch >= 2, got 0"),
        ({"latent_channels": 4, "preprocess": {"crop": 0}}, ValueError, "expected crop to be .* got 0"),
    ],
)
def test_settings_that_do_not_fit_are_named(settings: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Autoencoder(**settings)


def test_a_misspelt_setting_of_a_preset_names_the_right_one() -> None:
    with pytest.raises(TypeError, match="no tokenizer 'kl_nano'.*'widht'; did you mean width"):
        vistok.tokenizer("kl_nano", widht=16)


def test_an_empty_batch_is_refused() -> None:
    with pytest.raises(ValueError, match=r"expected float images \[B, 3, H, W\].* got \[0, 3, 8, 8\]"):
        build("kl").encode(torch.zeros(0, 3, 8, 8))


def test_images_a_rounding_error_out_of_range_are_accepted_and_not_clipped() -> None:
    build("kl").encode(torch.tensor([-1e-4, 1 + 1e-4]).repeat(96).reshape(1, 3, 8, 8)).check()


@pytest.mark.slow
def test_a_model_exports_with_any_batch() -> None:
    model = build("vq")

    class RoundTrip(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, picture: Tensor) -> Tensor:
            return model.decode(model.encode(picture))

    batch = torch.export.Dim("batch", min=2, max=64)
    exported = torch.export.export(RoundTrip().eval(), (images(12, 16),), dynamic_shapes=({0: batch},)).module()
    picture = images(12, 16, batch=5)
    torch.testing.assert_close(exported(picture), RoundTrip()(picture), rtol=0, atol=1e-5)
