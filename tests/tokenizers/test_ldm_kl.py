"""KL autoencoders of latent diffusion: published names, strict keys, normalised latents, what training left behind."""

from pathlib import Path
from typing import Any

import pytest
import torch

import vistok
from vistok.weights import misfits

from .key_tables import Shapes, conv, drawn, meta, taming_decoder, taming_encoder

SIZES: dict[str, Any] = {"ch": 32, "ch_mult": [1, 2], "num_res_blocks": 1, "dim": 6}


def table(ch: int, mult: list[int], blocks: int, dim: int, attend: list[int]) -> Shapes:
    last = len(mult) - 1
    shapes = taming_encoder(ch, mult, blocks, 2 * dim, attend=[last], halve=last)
    shapes |= taming_decoder(ch, mult, blocks, dim, attend=attend, double=last)
    return shapes | conv("quant_conv", 2 * dim, 2 * dim, 1, 1) | conv("post_quant_conv", dim, dim, 1, 1)


def tiny_table() -> Shapes:
    return table(32, [1, 2], 1, 6, [])


def images(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("name", "dim", "attend"), [("mar_kl16", 16, []), ("va_vae_f16d32", 32, [4])])
def test_full_size_checkpoints_of_the_authors_fit(name: str, dim: int, attend: list[int]) -> None:
    left: Shapes = {"loss.logvar": (), "foundation_model.model.cls_token": (1, 1, 8), "linear_proj.weight": (8, 8)}
    theirs = meta(table(128, [1, 1, 2, 2, 4], 2, dim, attend) | left)
    with torch.device("meta"):
        model: Any = vistok.tokenizer(name)
    assert misfits(model, model.rename_keys(theirs)) == []
    model.load_state_dict(model.rename_keys(theirs))
    del theirs["decoder.mid.attn_1.q.weight"]
    assert misfits(model, model.rename_keys(theirs)) == ["missing decoder.mid.attn_1.q.weight [512, 512, 1, 1]"]


def test_a_key_that_is_renamed_missing_or_of_another_shape_is_named(tmp_path: Path) -> None:
    tensors = drawn(tiny_table())
    tensors["encoder.conv_entry.weight"] = tensors.pop("encoder.conv_in.weight")
    del tensors["quant_conv.bias"]
    tensors["post_quant_conv.weight"] = tensors["post_quant_conv.weight"][:, :5]
    torch.save({"model": tensors}, tmp_path / "kl16.ckpt")
    with pytest.raises(ValueError) as raised:
        vistok.tokenizer("mar_kl16", checkpoint=tmp_path / "kl16.ckpt", **SIZES)
    for part in (
        "missing encoder.conv_in.weight [32, 3, 3, 3]",
        "missing quant_conv.bias [12]",
        "unexpected encoder.conv_entry.weight",
        "post_quant_conv.weight: expected [6, 6, 1, 1], got [6, 5, 1, 1]",
    ):
        assert part in str(raised.value)


@torch.no_grad()
def test_tokens_of_mar_are_latents_times_its_scale_and_decode_undoes_it(tmp_path: Path) -> None:
    torch.save({"model": drawn(tiny_table())}, tmp_path / "kl16.ckpt")
    model: Any = vistok.tokenizer("mar_kl16", checkpoint=tmp_path / "kl16.ckpt", **SIZES).eval()  # type: ignore[attr-defined]
    x = images(2, 3, 16, 20)
    moments = model.quant_conv(model.encoder(x * 2 - 1))
    mean = moments[:, :6].flatten(2).transpose(1, 2)
    tokens = model.encode(x)
    torch.testing.assert_close(tokens.embeds, mean * 0.2325)
    pixels = model.decoder(model.post_quant_conv(moments[:, :6]))
    torch.testing.assert_close(model.decode(tokens), ((pixels + 1) / 2).clamp(0, 1))
    drawn_once, drawn_again, other = (
        model.encode(x, sample=True, generator=torch.Generator().manual_seed(seed)).embeds for seed in (3, 3, 4)
    )
    assert torch.equal(drawn_once, drawn_again) and not torch.equal(drawn_once, other)
    odd = images(1, 3, 13, 7)
    assert model.decode(model.encode(odd)).shape == odd.shape


@torch.no_grad()
def test_statistics_of_each_channel_normalise_and_travel_with_the_settings(tmp_path: Path) -> None:
    mean, std = [0.1 * i for i in range(6)], [1.0 + i for i in range(6)]
    plain: Any = vistok.tokenizer("va_vae_f16d32", **SIZES).eval()  # type: ignore[attr-defined]
    model: Any = vistok.tokenizer("va_vae_f16d32", latent_mean=mean, latent_std=std, **SIZES)
    model.load_state_dict(plain.state_dict())
    model.eval().save_pretrained(tmp_path)
    again: Any = vistok.tokenizer("va_vae_f16d32", checkpoint=tmp_path)
    x = images(1, 3, 8, 12)
    raw, tokens = plain.encode(x), again.eval().encode(x)
    torch.testing.assert_close(tokens.embeds, (raw.embeds - torch.tensor(mean)) / torch.tensor(std))
    torch.testing.assert_close(again.decode(tokens), plain.decode(raw), rtol=0, atol=1e-5)


def test_statistics_that_cannot_be_are_refused() -> None:
    for wrong in ({"latent_std": [1.0] * 5}, {"latent_mean": float("nan")}, {"latent_std": [0.0, *[1.0] * 5]}):
        with pytest.raises(ValueError, match=f"expected {next(iter(wrong))}"):
            vistok.tokenizer("va_vae_f16d32", **SIZES | wrong)
    model: Any = vistok.tokenizer("mar_kl16", **SIZES)
    with pytest.raises(ValueError, match="expected all tokens of a grid"):
        model.decode(model.encode(images(1, 3, 8, 8)).truncate(3))


def test_training_draws_latents_and_gives_the_divergence() -> None:
    model: Any = vistok.tokenizer("mar_kl16", **SIZES).train()  # type: ignore[attr-defined]
    torch.manual_seed(0)
    first, second = (model(images(1, 3, 8, 8)) for _ in range(2))
    assert not torch.equal(first.images, second.images)
    torch.testing.assert_close(first.loss, 1e-6 * first.stats["kl"])


def test_latents_that_are_not_finite_are_no_tokens() -> None:
    model: Any = vistok.tokenizer("mar_kl16", **SIZES).eval()
    with torch.no_grad():
        model.quant_conv.weight[0, 0] = float("inf")
    with pytest.raises(ValueError, match=r"expected finite latents from torch.float32, got others in images \[0, 1\]"):
        model.encode(torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)))


def test_images_of_float32_are_encoded_in_bfloat16() -> None:
    images = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    model: Any = vistok.tokenizer("mar_kl16", dtype=torch.bfloat16, **SIZES)
    tokens = model.encode(images).check()
    assert model.decode(tokens).shape == images.shape


def test_statistics_are_not_rounded_to_the_dtype_of_the_model() -> None:
    statistics: dict[str, Any] = {"latent_mean": 0.12345678, "latent_std": 1.2345678}
    model: Any = vistok.tokenizer("va_vae_f16d32", dtype=torch.bfloat16, **SIZES | statistics)
    with torch.no_grad():
        tokens = model.encode(images(1, 3, 8, 8))
        raw = model.posterior(images(1, 3, 8, 8)).mean.flatten(1, 2)
    expected = (raw.float() - 0.12345678) / 1.2345678
    torch.testing.assert_close(tokens.embeds, expected.to(raw.dtype), rtol=0, atol=0)
