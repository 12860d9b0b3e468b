"""Chameleon's VQGAN: published names and sizes, and the ids and pixels of the classes that others made of it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers.models.chameleon.configuration_chameleon import ChameleonVQVAEConfig
from transformers.models.chameleon.modeling_chameleon import ChameleonVQVAE

import vistok
from vistok.layers.ldm_vae import LdmDecoder
from vistok.weights import misfits

from .key_tables import Shapes, code_table, drawn, meta, taming_decoder, taming_encoder

SIZES: dict[str, Any] = {
    "ch": 32, "ch_mult": [1, 2, 2], "num_res_blocks": 1, "z_channels": 16, "dim": 8, "codebook_size": 64
}  # fmt: skip


def table(ch: int, mult: list[int], blocks: int, z: int, dim: int, codes: int) -> Shapes:
    levels = len(mult) - 1
    network = taming_encoder(ch, mult, blocks, z, halve=levels) | taming_decoder(ch, mult, blocks, z, double=levels)
    return network | code_table(codes, dim, z)


def tiny_table() -> Shapes:
    return table(32, [1, 2, 2], 1, 16, 8, 64)


def test_a_full_size_checkpoint_of_the_authors_fits() -> None:
    theirs = meta(table(128, [1, 1, 2, 2, 4], 2, 256, 256, 8192))
    with torch.device("meta"):
        model: Any = vistok.tokenizer("chameleon")
        alone: Any = vistok.tokenizer("chameleon_encoder")
    assert misfits(model, model.rename_keys(theirs | meta({"loss.discriminator.main.0.weight": (64, 3, 4, 4)}))) == []
    inside = {f"model.vqmodel.{name}": value for name, value in theirs.items() if not name.startswith("decoder.")}
    whole = inside | meta({"model.layers.0.mlp.gate_proj.weight": (8, 8), "lm_head.weight": (8, 8)})
    assert misfits(alone, alone.rename_keys(whole)) == []
    assert sum(value.numel() for value in alone.state_dict().values()) == 29_423_616


def test_a_key_that_is_renamed_missing_or_of_another_shape_is_named(tmp_path: Path) -> None:
    tensors = drawn(tiny_table())
    tensors["encoder.conv_entry.weight"] = tensors.pop("encoder.conv_in.weight")
    del tensors["decoder.up.0.block.0.conv1.bias"]
    tensors["quantize.embedding.weight"] = tensors["quantize.embedding.weight"][:, :4]
    torch.save({"state_dict": tensors}, tmp_path / "vqgan.ckpt")
    with pytest.raises(ValueError) as raised:
        vistok.tokenizer("chameleon", checkpoint=tmp_path / "vqgan.ckpt", **SIZES)
    for part in (
        "missing encoder.conv_in.weight [32, 3, 3, 3]",
        "missing decoder.up_blocks.2.resnets.0.conv1.bias [32]",
        "unexpected encoder.conv_entry.weight",
        "quantize.embedding.weight: expected [64, 8], got [64, 4]",
    ):
        assert part in str(raised.value)


@torch.no_grad()
def test_ids_are_those_of_the_class_in_transformers_and_pixels_those_of_the_authors_decoder(tmp_path: Path) -> None:
    tensors = drawn(tiny_table())
    torch.save({"state_dict": tensors}, tmp_path / "vqgan.ckpt")
    model: Any = vistok.tokenizer("chameleon", checkpoint=tmp_path / "vqgan.ckpt", **SIZES).eval()  # type: ignore[attr-defined]
    encoder = ChameleonVQVAE(
        ChameleonVQVAEConfig(
            base_channels=32, channel_multiplier=[1, 2, 2], num_res_blocks=1, latent_channels=16, embed_dim=8,
            num_embeddings=64,
        )
    ).eval()  # fmt: skip
    encoder.load_state_dict({name: value for name, value in tensors.items() if not name.startswith("decoder.")})
    decoder = LdmDecoder(32, [1, 2, 2], 2, 16).eval()
    decoder.load_state_dict(
        {name.removeprefix("decoder."): value for name, value in tensors.items() if name.startswith("decoder.")}
    )
    images = torch.rand(2, 3, 24, 32, generator=torch.Generator().manual_seed(1))
    tokens = model.encode(images)
    theirs = encoder.encode(2 * images - 1)
    assert len(set(theirs.image_tokens.tolist())) > 4
    assert torch.equal(tokens.indices.flatten(), theirs.image_tokens)
    codes = tensors["quantize.embedding.weight"][tokens.indices].transpose(1, 2).unflatten(2, (6, 8))
    pixels = decoder(encoder.post_quant_conv(codes))
    torch.testing.assert_close(model.decode(tokens), ((pixels + 1) / 2).clamp(0, 1), rtol=0, atol=1e-5)

    inside = {f"model.vqmodel.{name}": value for name, value in encoder.state_dict().items()}
    torch.save(inside, tmp_path / "whole.bin")
    (tmp_path / "config.json").write_text('{"model_type": "chameleon", "vocab_size": 65536}')
    alone: Any = vistok.tokenizer("chameleon_encoder", checkpoint=tmp_path / "whole.bin", **SIZES)
    assert torch.equal(alone.eval().encode(images).indices, tokens.indices)
    with pytest.raises(NotImplementedError, match="encoder alone"):
        alone.decode(tokens)
