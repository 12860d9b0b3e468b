"""Taming's VQGAN: published names and sizes, strict keys, ids and pixels of a second implementation."""

from pathlib import Path
from typing import Any

import pytest
import torch

import vistok
from vistok.layers.ldm_vae import LdmDecoder, LdmEncoder
from vistok.ops import nearest_code
from vistok.weights import misfits

from .key_tables import Shapes, code_table, drawn, meta, taming_decoder, taming_encoder

SIZES: dict[str, Any] = {
    "ch": 32, "ch_mult": [1, 2, 2], "num_res_blocks": 1, "z_channels": 16, "dim": 8, "codebook_size": 64,
    "attention_levels": [2],
}  # fmt: skip


def table(ch: int, mult: list[int], blocks: int, z: int, dim: int, codes: int) -> Shapes:
    """Attention at the lowest level, as in all that the authors published."""
    last = len(mult) - 1
    encoder = taming_encoder(ch, mult, blocks, z, attend=[last], halve=last)
    return encoder | taming_decoder(ch, mult, blocks, z, attend=[last], double=last) | code_table(codes, dim, z)


def tiny_table() -> Shapes:
    return table(32, [1, 2, 2], 1, 16, 8, 64)


@pytest.mark.parametrize(
    ("name", "mult", "width", "codes"),
    [
        ("taming_f16_1024", [1, 1, 2, 2, 4], 256, 1024),
        ("taming_f16_16384", [1, 1, 2, 2, 4], 256, 16384),
        ("taming_f8_256", [1, 2, 2, 4], 4, 256),
        ("taming_f8_16384", [1, 2, 2, 4], 4, 16384),
    ],
)
def test_full_size_checkpoints_of_the_authors_fit(name: str, mult: list[int], width: int, codes: int) -> None:
    theirs = meta(table(128, mult, 2, width, width, codes) | {"loss.discriminator.main.0.weight": (64, 3, 4, 4)})
    with torch.device("meta"):
        model: Any = vistok.tokenizer(name)
    assert misfits(model, model.rename_keys(theirs)) == []
    model.load_state_dict(model.rename_keys(theirs))
    assert model.patch == 2 ** (len(mult) - 1)


def test_a_key_that_is_renamed_missing_or_of_another_shape_is_named(tmp_path: Path) -> None:
    tensors = drawn(tiny_table())
    tensors["encoder.down.2.attention.0.q.weight"] = tensors.pop("encoder.down.2.attn.0.q.weight")
    del tensors["decoder.up.0.block.0.conv1.bias"]
    tensors["quantize.embedding.weight"] = tensors["quantize.embedding.weight"][:, :4]
    torch.save({"state_dict": tensors}, tmp_path / "last.ckpt")
    with pytest.raises(ValueError) as raised:
        vistok.tokenizer("taming_f16_1024", checkpoint=tmp_path / "last.ckpt", **SIZES)
    for part in (
        "missing encoder.down_blocks.2.attentions.0.to_q.weight [64, 64]",
        "missing decoder.up_blocks.2.resnets.0.conv1.bias [32]",
        "unexpected encoder.down_blocks.2.attention.0.q.weight",
        "quantize.embedding: expected [64, 8], got [64, 4]",
    ):
        assert part in str(raised.value)


@torch.no_grad()
def test_ids_and_pixels_are_those_of_the_layers_under_the_authors_own_names(tmp_path: Path) -> None:
    tensors = drawn(tiny_table())
    torch.save({"state_dict": tensors | {"loss.logvar": torch.zeros(())}}, tmp_path / "last.ckpt")
    model: Any = vistok.tokenizer("taming_f16_1024", checkpoint=tmp_path / "last.ckpt", **SIZES)
    encoder, decoder = LdmEncoder(32, [1, 2, 2], 1, 8), LdmDecoder(32, [1, 2, 2], 2, 16, attend=True)
    for name, part in (("encoder", encoder), ("decoder", decoder)):
        part.load_state_dict({k.removeprefix(f"{name}."): v for k, v in tensors.items() if k.startswith(f"{name}.")})
    images = torch.rand(2, 3, 24, 36, generator=torch.Generator().manual_seed(1))

    def mix(name: str, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.conv2d(x, tensors[f"{name}.weight"], tensors[f"{name}.bias"])

    z = mix("quant_conv", encoder(images * 2 - 1)).flatten(2).transpose(1, 2)
    ids = nearest_code(z, tensors["quantize.embedding.weight"])
    tokens = model.eval().encode(images)
    assert len(ids.unique()) > 4 and torch.equal(tokens.indices, ids)
    codes = tensors["quantize.embedding.weight"][ids].transpose(1, 2).unflatten(2, (6, 9))
    pixels = decoder(mix("post_quant_conv", codes))
    torch.testing.assert_close(model.decode(tokens), ((pixels + 1) / 2).clamp(0, 1), rtol=0, atol=1e-5)


def test_attention_is_at_the_levels_asked_for_at_any_resolution() -> None:
    model: Any = vistok.tokenizer("taming_f16_1024", **SIZES | {"attention_levels": [1]})
    names = {name.split(".attentions.")[0] for name in model.state_dict() if ".attentions." in name}
    places = {"encoder.down_blocks.1", "encoder.mid_block", "decoder.mid_block", "decoder.up_blocks.1"}
    assert names == places
    with pytest.raises(ValueError, match=r"expected attention_levels in 0..2, got \[3\]"):
        vistok.tokenizer("taming_f16_1024", **SIZES | {"attention_levels": [3]})


@torch.no_grad()
def test_another_resolution_decodes_and_odd_sides_come_back() -> None:
    model: Any = vistok.tokenizer("taming_f16_1024", **SIZES).eval()  # type: ignore[attr-defined]
    images = torch.rand(1, 3, 41, 26, generator=torch.Generator().manual_seed(1))
    tokens = model.encode(images)
    assert tokens.spec.grid == (11, 7) and model.decode(tokens).shape == images.shape
