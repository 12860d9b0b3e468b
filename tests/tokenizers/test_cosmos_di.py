"""Cosmos DI: names and shapes of the authors' scripts, trust, and the ids that a script itself gives."""

import math
import warnings
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import vistok
from vistok.weights import misfits

from .key_tables import Shapes, conv, meta, taming_decoder, taming_encoder

SIZES: dict[str, Any] = {
    "patch": 8, "ch": 32, "ch_mult": [1, 2], "num_res_blocks": 1, "z_channels": 16, "levels": [4, 3, 2]
}  # fmt: skip


class AuthorsFsq(nn.Module):
    """What the authors' quantizer gives: ids [B, h, w] int32 and codes; its constants are buffers of the script."""

    _levels: Tensor
    _basis: Tensor

    def __init__(self, levels: list[int]) -> None:
        super().__init__()
        self.register_buffer("_levels", torch.tensor(levels), persistent=False)
        self.register_buffer("_basis", torch.tensor([1, *levels[:-1]]).cumprod(0), persistent=False)

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        z = z.permute(0, 2, 3, 1)
        half = (self._levels - 1) * (1 + 1e-3) / 2
        offset = torch.where(self._levels % 2 == 0, 0.5, 0.0)
        bounded = (z + (offset / half).atanh()).tanh() * half - offset
        width = self._levels // 2
        codes = bounded.round() / width
        ids = ((codes * width + width) * self._basis).sum(-1).to(torch.int32)
        return ids, codes.permute(0, 3, 1, 2)


def scripts(folder: Path, model: Any, levels: list[int]) -> nn.Module:
    """Write the two halves of `model` as the authors do, but in float32; the encoder's is returned."""
    quantizer = AuthorsFsq(levels)
    model.encoder.register_buffer("wavelets", torch.ones(2) * 0.5**0.5, persistent=False)
    first = nn.Sequential(OrderedDict(encoder=model.encoder, quant_conv=model.quant_conv, quantizer=quantizer)).eval()
    second = nn.Sequential(OrderedDict(post_quant_conv=model.post_quant_conv, decoder=model.decoder)).eval()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace(first, torch.rand(1, 3, 16, 16), check_trace=False), folder / "encoder.jit")
        torch.jit.save(
            torch.jit.trace(second, torch.rand(1, len(levels), 2, 2), check_trace=False), folder / "decoder.jit"
        )
    return first


def authors_table(halvings: int) -> Shapes:
    mult, ends = [2, 4, 4], 3 * 4**2
    return (
        taming_encoder(128, mult, 2, 256, ends=ends, halve=halvings)
        | taming_decoder(128, mult, 2, 256, ends=ends, double=halvings)
        | conv("quant_conv", 256, 6, 1, 1)
        | conv("post_quant_conv", 6, 256, 1, 1)
    )


CONSTANTS: Shapes = {
    "encoder.patcher.wavelets": (2,), "encoder.patcher._arange": (2,), "decoder.unpatcher.wavelets": (2,),
    "decoder.unpatcher._arange": (2,), "quantizer._levels": (6,), "quantizer._basis": (6,),
    "quantizer.implicit_codebook": (64000, 6), "inv_quant.quantizer._levels": (6,), "inv_quant.quantizer._basis": (6,),
    "inv_quant.quantizer.implicit_codebook": (64000, 6),
}  # fmt: skip


@pytest.mark.parametrize(("name", "halvings"), [("cosmos_di8", 1), ("cosmos_di16", 2)])
def test_full_size_scripts_of_the_authors_fit(name: str, halvings: int) -> None:
    with torch.device("meta"):
        model: Any = vistok.tokenizer(name)
    assert math.prod((8, 8, 8, 5, 5, 5)) == 64000 == model.codebook_sizes[0]
    theirs = meta(authors_table(halvings) | CONSTANTS)
    assert misfits(model, model.rename_keys(theirs)) == []
    theirs["decoder.up.0.block.3.conv1.bias"] = theirs.pop("decoder.up.0.block.2.conv1.bias")
    theirs["quant_conv.bias"] = torch.empty(5, device="meta")
    assert misfits(model, model.rename_keys(theirs)) == [
        "missing decoder.up.0.block.2.conv1.bias [256]",
        "unexpected decoder.up.0.block.3.conv1.bias [256]",
        "quant_conv.bias: expected [6], got [5]",
    ]


@torch.no_grad()
def test_scripts_are_read_with_trust_only_and_give_the_ids_that_they_give_themselves(tmp_path: Path) -> None:
    torch.manual_seed(0)
    original: Any = vistok.tokenizer("cosmos_di8", **SIZES)
    original.quant_conv.weight.mul_(6)
    theirs = scripts(tmp_path, original, [4, 3, 2])
    with pytest.raises(ValueError, match=r"encoder.jit and decoder.jit are TorchScript.*pass trust=True"):
        vistok.tokenizer("cosmos_di8", checkpoint=tmp_path, **SIZES)
    torch.manual_seed(1)
    model: Any = vistok.tokenizer("cosmos_di8", checkpoint=tmp_path, trust=True, **SIZES)
    images = torch.rand(2, 3, 24, 40, generator=torch.Generator().manual_seed(1))
    tokens = model.eval().encode(images)
    ids, codes = theirs(2 * images - 1)
    assert len(set(ids.flatten().tolist())) > 4
    assert torch.equal(tokens.indices, ids.flatten(1).long())
    torch.testing.assert_close(tokens.embeds, codes.flatten(2).transpose(1, 2), rtol=0, atol=1e-6)
    pixels = original.decoder(original.post_quant_conv(codes))
    torch.testing.assert_close(model.decode(tokens), ((pixels + 1) / 2).clamp(0, 1), rtol=0, atol=1e-5)


def test_a_damaged_script_and_one_that_does_not_fit_are_named(tmp_path: Path) -> None:
    model: Any = vistok.tokenizer("cosmos_di8", **SIZES)
    scripts(tmp_path, model, [4, 3, 2])
    with pytest.raises(ValueError, match=r"does not fit CosmosDI: .*quant_conv.weight"):
        vistok.tokenizer("cosmos_di8", checkpoint=tmp_path, trust=True, **{**SIZES, "levels": [4, 3]})
    (tmp_path / "decoder.jit").write_bytes(b"PK\x03\x04 nothing")
    with pytest.raises(ValueError, match=r"decoder.jit: expected a whole TorchScript file"):
        vistok.tokenizer("cosmos_di8", checkpoint=tmp_path, trust=True, **SIZES)


def test_the_size_of_a_patch_must_be_one_that_the_network_can_make() -> None:
    for patch in (2, 12, 64):
        with pytest.raises(ValueError, match=f"power of two from 4 to 32, got {patch}"):
            vistok.tokenizer("cosmos_di16", patch=patch)
