"""Emu3's vision tokenizer: published names and sizes, ids and pixels of transformers' Emu3VQVAE on still images."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers.models.emu3.configuration_emu3 import Emu3VQVAEConfig
from transformers.models.emu3.modeling_emu3 import Emu3VQVAE

import vistok
from vistok.weights import misfits

from .key_tables import Shapes, conv, drawn, joined, meta, norm, taming_decoder, taming_encoder

SIZES: dict[str, Any] = {
    "base_channels": 32, "channel_multiplier": [1, 2], "num_res_blocks": 1, "attention_levels": [1], "codebook_size": 64
}  # fmt: skip


def spatial(shapes: Shapes, dim: int) -> Shapes:
    """The decoder's norms, each a GroupNorm that the codes scale and shift."""
    out: Shapes = {}
    for name, shape in shapes.items():
        owner, _, kind = name.rpartition(".")
        if owner.rsplit(".", 1)[-1] not in ("norm1", "norm2", "norm", "norm_out"):
            out[name] = shape
            continue
        out[f"{owner}.norm_layer.{kind}"] = shape
        out |= conv(f"{owner}.conv_y", dim, shape[0], 1, 1) | conv(f"{owner}.conv_b", dim, shape[0], 1, 1)
    return out


def stacked_norm(name: str, width: int) -> Shapes:
    counts: Shapes = {f"{name}.running_mean": (width,), f"{name}.running_var": (width,)}
    return norm(name, width) | counts | {f"{name}.num_batches_tracked": ()}


def over_time(part: str, z: int, blocks: int, depth: int) -> Shapes:
    """Causal 3-D convolutions: two that halve or double the frames, and residual blocks."""
    shapes = joined(conv(f"{part}.time_conv.{i}.conv.conv", z, z, depth, 3, 3) for i in range(2))
    for i in range(blocks):
        for half in (1, 2):
            shapes |= stacked_norm(f"{part}.time_res_stack.{i}.norm{half}", z)
            shapes |= conv(f"{part}.time_res_stack.{i}.conv{half}.conv", z, z, 3, 3, 3)
    return shapes


def authors_table(ch: int, mult: list[int], blocks: int, attend: list[int], z: int, dim: int, codes: int) -> Shapes:
    last = len(mult) - 1
    decoder = taming_decoder(ch, mult, blocks, z, attend=attend, double=last)
    return (
        taming_encoder(ch, mult, blocks, z, attend=attend, halve=last)
        | over_time("encoder", z, blocks, 4)
        | spatial(decoder, dim)
        | over_time("decoder", z, blocks, 3)
        | conv("quant_conv.conv", z, dim, 3, 1, 1)
        | conv("post_quant_conv.conv", dim, z, 3, 1, 1)
        | {"quantize.embedding.weight": (codes, dim)}
    )


def test_full_size_checkpoints_of_the_authors_and_of_transformers_fit() -> None:
    with torch.device("meta"):
        model: Any = vistok.tokenizer("emu3")
        theirs = Emu3VQVAE(Emu3VQVAEConfig())
    parameters = sum(parameter.numel() for parameter in model.parameters())
    assert parameters == 270_740_287 and len(model.state_dict()) == 495
    authors = meta(authors_table(256, [1, 2, 2, 4], 2, [3], 4, 4, 32768))
    assert misfits(model, model.rename_keys(authors)) == []
    whole = {f"model.vqmodel.{name}": value for name, value in theirs.state_dict().items()}
    assert misfits(model, model.rename_keys(whole | meta({"model.text_model.norm.weight": (8,)}))) == []
    authors["decoder.mid.attn_1.query.weight"] = authors.pop("decoder.mid.attn_1.q.weight")
    authors["encoder.conv_in.bias"] = torch.empty(3, device="meta")
    assert misfits(model, model.rename_keys(authors)) == [
        "missing decoder.middle_block.attn_1.q_proj.weight [1024, 1024]",
        "unexpected decoder.middle_block.attn_1.query.weight [1024, 1024, 1, 1]",
        "encoder.conv_in.bias: expected [256], got [3]",
    ]


@torch.no_grad()
def test_ids_and_pixels_of_the_authors_checkpoint_are_those_of_transformers(tmp_path: Path) -> None:
    tensors = drawn(authors_table(32, [1, 2], 1, [1], 4, 4, 64))
    for name in tensors:
        if name.endswith("num_batches_tracked"):
            tensors[name] = torch.tensor(7)
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    config = '{"model_type": "Emu3VisionVQ", "ch": 32, "ch_mult": [1, 2], "num_res_blocks": 1, "z_channels": 4, '
    config += '"attn_resolutions": [1], "embed_dim": 4, "codebook_size": 64, "temporal_downsample_factor": 4}'
    (tmp_path / "config.json").write_text(config)
    model: Any = vistok.tokenizer("emu3", checkpoint=tmp_path)
    assert (model.patch, model.frames, model.codebook_sizes) == (2, 4, (64,))
    theirs = Emu3VQVAE(
        Emu3VQVAEConfig(
            base_channels=32, channel_multiplier=[1, 2], num_res_blocks=1, attn_resolutions=[1], hidden_size=64,
            codebook_size=64,
        )
    ).eval()  # fmt: skip
    theirs.load_state_dict(model.state_dict())
    images = torch.rand(2, 3, 16, 20, generator=torch.Generator().manual_seed(1))
    tokens = model.eval().encode(images)
    ids = torch.stack(theirs.encode(2 * images - 1, torch.tensor([[16, 20]] * 2)).image_tokens)
    assert len(set(ids.flatten().tolist())) > 4
    assert torch.equal(tokens.indices, ids.flatten(1))
    pixels = theirs.decode(ids)
    torch.testing.assert_close(model.decode(tokens), ((pixels + 1) / 2).clamp(0, 1), rtol=0, atol=1e-5)


def test_attention_is_linear_where_it_was_a_convolution() -> None:
    model: Any = vistok.tokenizer("emu3", **SIZES)
    theirs = drawn(authors_table(32, [1, 2], 1, [1], 4, 4, 64))
    name = "encoder.down.1.attn.0.q.weight"
    ours = model.rename_keys(theirs)["encoder.down_block.down.1.attn.0.q_proj.weight"]
    assert torch.equal(ours, theirs[name][:, :, 0, 0])


def test_only_the_authors_own_config_says_sizes() -> None:
    from vistok.tokenizers.emu3 import Emu3

    assert Emu3.rename_settings({"model_type": "emu3", "vocab_size": 5}) == {}
    assert Emu3.rename_settings({"dim": 4}) == {"dim": 4}


@pytest.mark.parametrize("frames", [1, 2])
def test_any_power_of_two_of_frames_makes_one_frame_of_codes(frames: int) -> None:
    model: Any = vistok.tokenizer("emu3", **SIZES, frames=frames).eval()  # type: ignore[attr-defined]
    images = torch.rand(2, 3, 8, 12, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        tokens = model.encode(images)
        assert tokens.num_slots == 24 and model.decode(tokens).shape == images.shape
