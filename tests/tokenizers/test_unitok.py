"""UniTok: names and shapes of the authors' file, ids codebook by codebook, what of the file is left out."""

from pathlib import Path
from typing import Any

import pytest
import torch

import vistok
from vistok.weights import misfits

from .key_tables import Shapes, conv, drawn, joined, meta, norm

SIZES: dict[str, Any] = {
    "widths": [8, 16, 32], "depths": [2, 1], "layers": 2, "heads": 4, "dim": 8, "codebooks": 2, "codebook_size": 16
}  # fmt: skip


def linear(name: str, inputs: int, outputs: int, *, bias: bool = True) -> Shapes:
    return conv(name, inputs, outputs, bias=bias)


def bottleneck(name: str, inputs: int, outputs: int) -> Shapes:
    middle = 4 * outputs
    return (
        norm(f"{name}.pre_norm", inputs)
        | conv(f"{name}.conv1_1x1", inputs, middle, 1, 1)
        | conv(f"{name}.conv2_kxk", 1, middle, 3, 3)
        | conv(f"{name}.conv3_1x1", middle, outputs, 1, 1)
    )


def gated_mlp(name: str, width: int) -> Shapes:
    wide = linear(f"{name}.w0", width, 2 * width) | linear(f"{name}.w1", width, 2 * width)
    return norm(f"{name}.norm", width) | wide | linear(f"{name}.w2", 2 * width, width)


def blocks(name: str, width: int, layers: int) -> Shapes:
    return joined(
        norm(f"{name}.{i}.norm1", width)
        | linear(f"{name}.{i}.attn.qkv", width, 3 * width)
        | linear(f"{name}.{i}.attn.proj", width, width)
        | norm(f"{name}.{i}.norm2", width)
        | gated_mlp(f"{name}.{i}.mlp", width)
        for i in range(layers)
    )


def projection(name: str, inputs: int, outputs: int) -> Shapes:
    wide = max(inputs, outputs)
    biases: Shapes = {f"{name}.attn.{part}": (wide,) for part in ("q_bias", "v_bias", "zero_k_bias")}
    return (
        biases
        | linear(f"{name}.attn.qkv", inputs, 3 * wide, bias=False)
        | linear(f"{name}.attn.proj", outputs, outputs)
        | linear(f"{name}.proj", inputs, outputs)
        | norm(f"{name}.norm1", inputs)
        | norm(f"{name}.norm3", inputs)
        | norm(f"{name}.norm2", outputs)
        | gated_mlp(f"{name}.mlp", outputs)
    )


def encoder_table(fine: int, coarse: int, width: int, depths: list[int], layers: int) -> Shapes:
    net = "encoder.patch_embed.backbone"
    shapes = conv(f"{net}.stem.conv1", 3, fine, 3, 3) | norm(f"{net}.stem.norm1", fine)
    shapes |= conv(f"{net}.stem.conv2", fine, fine, 3, 3)
    for stage, (before, after) in enumerate(((fine, fine), (fine, coarse))):
        for i in range(depths[stage]):
            shapes |= bottleneck(f"{net}.stages.{stage}.{i}", before if i == 0 else after, after)
    shapes |= conv(f"{net}.stages.1.0.shortcut.expand", fine, coarse, 1, 1)
    shapes |= norm(f"{net}.pool.norm", coarse) | conv(f"{net}.pool.proj", coarse, width, 3, 3)
    return shapes | blocks("encoder.blocks", width, layers) | norm("encoder.norm", width)


def decoder_table(fine: int, coarse: int, width: int, depths: list[int], layers: int) -> Shapes:
    shapes = blocks("decoder.blocks", width, layers) | norm("decoder.norm", width)
    shapes |= conv("decoder.up_conv1.conv", width, coarse, 3, 3)
    for part, before, after, depth in (("up_conv2", coarse, coarse, depths[1]), ("up_conv3", coarse, fine, depths[0])):
        for i in range(depth):
            shapes |= bottleneck(f"decoder.{part}.{i}", before if i == 0 else after, after)
        shapes |= conv(f"decoder.{part}.0.shortcut.conv", before, after, 3, 3)
        shapes |= conv(f"decoder.{part}.0.up.conv", 4 * after, 4 * after, 3, 3)
    shapes |= conv("decoder.up_conv4.conv1.conv", fine, fine, 3, 3) | norm("decoder.up_conv4.norm1", fine)
    return shapes | conv("decoder.up_conv4.conv2", fine, 3, 3, 3)


def table(widths: list[int], depths: list[int], layers: int, dim: int, books: int, codes: int) -> Shapes:
    fine, coarse, width = widths
    codebooks: Shapes = {f"quantizer.codebooks.{i}.codebook.weight": (codes, dim // books) for i in range(books)}
    return (
        encoder_table(fine, coarse, width, depths, layers)
        | projection("quant_proj", width, dim)
        | codebooks
        | projection("post_quant_proj", dim, width)
        | decoder_table(fine, coarse, width, depths, layers)
    )


BESIDE: Shapes = {
    "text_encoder.token_embedding.weight": (49, 8), "fc_norm.weight": (8,), "fc_norm.bias": (8,), "logit_scale": (),
    "projection.weight": (8, 8), "projection.bias": (8,), "quantizer.codebooks.0.vocab_usage": (16,),
}  # fmt: skip


def test_a_full_size_checkpoint_of_the_authors_fits() -> None:
    with torch.device("meta"):
        model: Any = vistok.tokenizer("unitok")
    theirs = meta(table([160, 320, 1024], [2, 4], 31, 64, 8, 4096) | BESIDE | {"encoder.pos_embed": (1, 1, 1024)})
    assert misfits(model, model.rename_keys(theirs)) == []
    theirs["decoder.up_conv4.conv2.bias"] = torch.empty(4, device="meta")
    theirs["quantizer.codebooks.8.codebook.weight"] = theirs.pop("quantizer.codebooks.7.codebook.weight")
    assert misfits(model, model.rename_keys(theirs)) == [
        "missing quantize.codebooks.7.embedding.weight [4096, 8]",
        "unexpected quantize.codebooks.8.embedding.weight [4096, 8]",
        "decoder.up_conv4.conv2.bias: expected [3], got [4]",
    ]


@torch.no_grad()
def test_each_codebook_takes_the_entry_of_the_largest_cosine(tmp_path: Path) -> None:
    tensors = drawn(table([8, 16, 32], [2, 1], 2, 8, 2, 16) | BESIDE)
    tensors["encoder.pos_embed"] = torch.zeros(1, 1, 32)
    saved = {"args": {"dtype": torch.bfloat16, "model": "vitamin_large"}, "trainer": {"unitok": tensors, "step": 3}}
    torch.save(saved, tmp_path / "unitok_tokenizer.pth")
    model: Any = vistok.tokenizer("unitok", checkpoint=tmp_path / "unitok_tokenizer.pth", **SIZES)
    images = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    tokens = model.eval().encode(images)
    assert tokens.check().indices.shape == (2, 24, 2) and tokens.spec.codebook_sizes == (16, 16)
    features = model.features(2 * images - 1).flatten(2).transpose(1, 2)
    codes = []
    for book in range(2):
        rows = torch.nn.functional.normalize(tensors[f"quantizer.codebooks.{book}.codebook.weight"], dim=1)
        part = torch.nn.functional.normalize(features[..., 4 * book : 4 * book + 4], dim=-1)
        ids = (part @ rows.T).argmax(-1)
        assert len(set(ids.flatten().tolist())) > 3
        assert torch.equal(tokens.indices[..., book], ids)
        codes.append(rows[ids])
    torch.testing.assert_close(tokens.embeds, torch.cat(codes, -1), rtol=0, atol=1e-6)
    assert model.decode(tokens).shape == images.shape


def test_a_position_embedding_that_says_something_is_refused(tmp_path: Path) -> None:
    tensors = drawn(table([8, 16, 32], [2, 1], 2, 8, 2, 16) | {"encoder.pos_embed": (1, 1, 32)})
    torch.save({"trainer": {"unitok": tensors}}, tmp_path / "unitok.pth")
    with pytest.raises(ValueError, match=r"unexpected encoder.pos_embed \[1, 1, 32\]"):
        vistok.tokenizer("unitok", checkpoint=tmp_path / "unitok.pth", **SIZES)
    with pytest.raises(ValueError, match="dim to be a multiple of codebooks=3, got 8"):
        vistok.tokenizer("unitok", **{**SIZES, "codebooks": 3})
