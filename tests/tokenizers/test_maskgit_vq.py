"""MaskGIT's VQGAN as a tokenizer: the names in its releases, KARL's names, and ids by the distances of the authors."""

from pathlib import Path
from typing import Any

import pytest
import torch

import vistok
from vistok.weights import misfits

from .key_tables import Shapes, conv, drawn, joined, meta, norm

SIZES: dict[str, Any] = {"ch": 32, "ch_mult": [1, 2], "num_res_blocks": 2, "dim": 8, "codebook_size": 64}


def block(name: str, inputs: int, outputs: int) -> Shapes:
    shapes = norm(f"{name}.norm1", inputs) | conv(f"{name}.conv1", inputs, outputs, 3, 3, bias=False)
    shapes |= norm(f"{name}.norm2", outputs) | conv(f"{name}.conv2", outputs, outputs, 3, 3, bias=False)
    short = conv(f"{name}.nin_shortcut", outputs, outputs, 1, 1, bias=False) if inputs != outputs else {}
    return shapes | short


def authors_table(ch: int, mult: list[int], blocks: int, dim: int, codes: int) -> Shapes:
    """open-muse's and TiTok's names."""
    down, up, last = [ch * m for m in (1, *mult)], [ch * m for m in mult], len(mult) - 1
    shapes = conv("encoder.conv_in", 3, ch, 3, 3, bias=False) | conv("decoder.conv_in", dim, up[-1], 3, 3)
    for level in range(len(mult)):
        for i in range(blocks):
            shapes |= block(f"encoder.down.{level}.block.{i}", down[level] if i == 0 else up[level], up[level])
            before = up[min(level + 1, last)] if i == 0 else up[level]
            shapes |= block(f"decoder.up.{level}.block.{i}", before, up[level])
        if level:
            shapes |= conv(f"decoder.up.{level}.upsample_conv", up[level], up[level], 3, 3)
    shapes |= joined(block(f"{part}.mid.{i}", up[-1], up[-1]) for part in ("encoder", "decoder") for i in range(blocks))
    shapes |= norm("encoder.norm_out", up[-1]) | conv("encoder.conv_out", up[-1], dim, 1, 1)
    shapes |= norm("decoder.norm_out", up[0]) | conv("decoder.conv_out", up[0], 3, 3, 3)
    return shapes | {"quantize.embedding.weight": (codes, dim)}


def test_a_full_size_checkpoint_of_the_authors_fits() -> None:
    with torch.device("meta"):
        model: Any = vistok.tokenizer("maskgit_vq")
    theirs = meta(authors_table(128, [1, 1, 2, 2, 4], 2, 256, 1024))
    assert misfits(model, model.rename_keys(theirs)) == []
    theirs["encoder.mid.1.conv3.weight"] = theirs.pop("encoder.mid.1.conv2.weight")
    assert misfits(model, model.rename_keys(theirs)) == [
        "missing encoder.mid.block_2.conv2.weight [512, 512, 3, 3]",
        "unexpected encoder.mid.block_2.conv3.weight [512, 512, 3, 3]",
    ]


@torch.no_grad()
def test_ids_are_the_nearest_codes_and_both_names_load(tmp_path: Path) -> None:
    theirs = drawn(authors_table(32, [1, 2], 2, 8, 64))
    theirs["encoder.conv_out.weight"] *= 4
    torch.save(theirs, tmp_path / "maskgit-vqgan-imagenet-f16-256.bin")
    model: Any = vistok.tokenizer("maskgit_vq", checkpoint=tmp_path, **SIZES)
    images = torch.rand(2, 3, 16, 24, generator=torch.Generator().manual_seed(1))
    tokens = model.eval().encode(images)
    features = model.encoder(images).flatten(2).transpose(1, 2)
    ids = torch.cdist(features, theirs["quantize.embedding.weight"], compute_mode="donot_use_mm_for_euclid_dist")
    assert len(set(tokens.indices.flatten().tolist())) > 4
    assert torch.equal(tokens.indices, ids.argmin(-1))
    codes = theirs["quantize.embedding.weight"][tokens.indices].transpose(1, 2).unflatten(2, (8, 12))
    torch.testing.assert_close(model.decode(tokens), model.decoder(codes).clamp(0, 1), rtol=0, atol=1e-5)

    torch.save({f"{name}": value for name, value in model.state_dict().items()}, tmp_path / "karl.pt")
    assert "encoder.mid.block_1.conv1.weight" in model.state_dict()
    again: Any = vistok.tokenizer("maskgit_vq", checkpoint=tmp_path / "karl.pt", **SIZES)
    assert torch.equal(again.eval().encode(images).indices, tokens.indices)


def test_the_decoder_is_the_one_below_titok(tmp_path: Path) -> None:
    below = {"ch": 32, "ch_mult": [1, 2], "num_res_blocks": 2, "z_channels": 8, "n_embed": 64}
    titok: Any = vistok.tokenizer(
        "titok_s128", encoder_width=16, encoder_layers=1, encoder_heads=2, decoder_width=16, decoder_layers=1,
        decoder_heads=2, latents=4, dim=4, codebook_size=16, image_size=[16, 16], patch=2, pixel_decoder=below,
    )  # fmt: skip
    model: Any = vistok.tokenizer("maskgit_vq", **SIZES)
    model.decoder.load_state_dict(titok.pixel_decoder.state_dict())
    with pytest.raises(ValueError, match="does not fit MaskGitVq: missing encoder.conv_in.weight"):
        torch.save(titok.state_dict(), tmp_path / "titok.pt")
        vistok.tokenizer("maskgit_vq", checkpoint=tmp_path / "titok.pt", **SIZES)
