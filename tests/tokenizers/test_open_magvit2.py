"""Open-MAGVIT2's tokenizers: published names and sizes, averages in the file, ids whose lowest bit is channel 0."""

from pathlib import Path
from typing import Any

import pytest
import torch

import vistok
from vistok.ops import join_ids, split_ids
from vistok.weights import misfits

from .key_tables import Shapes, conv, drawn, joined, meta, norm
from .test_ibq import with_averages

SIZES: dict[str, Any] = {"ch": 32, "ch_mult": [1, 2, 2], "num_res_blocks": 1, "dim": 7}


def block(name: str, inputs: int, outputs: int) -> Shapes:
    shapes = norm(f"{name}.norm1", inputs) | conv(f"{name}.conv1", inputs, outputs, 3, 3, bias=False)
    shapes |= norm(f"{name}.norm2", outputs) | conv(f"{name}.conv2", outputs, outputs, 3, 3, bias=False)
    return shapes | (conv(f"{name}.nin_shortcut", inputs, outputs, 1, 1, bias=False) if inputs != outputs else {})


def table(ch: int, mult: list[int], blocks: int, dim: int) -> Shapes:
    widths, last = [ch * factor for factor in mult], len(mult) - 1
    below, above = [ch, *widths[:-1]], [*widths[1:], widths[-1]]
    shapes = conv("encoder.conv_in", 3, ch, 3, 3, bias=False)
    for level, width in enumerate(widths):
        for i in range(blocks):
            shapes |= block(f"encoder.down.{level}.block.{i}", width if i else below[level], width)
            shapes |= block(f"decoder.up.{level}.block.{i}", width if i else above[level], width)
        if level < last:
            shapes |= conv(f"encoder.down.{level}.downsample", width, width, 3, 3)
        if level > 0:
            shapes |= conv(f"decoder.up.{level}.upsample.conv1", width, 4 * width, 3, 3)
        for part in ("gamma", "beta"):
            shapes |= conv(f"decoder.adaptive.{level}.{part}", dim, above[level])
    for part, width in (("encoder", widths[-1]), ("decoder", widths[0])):
        shapes |= joined(block(f"{part}.mid_block.{i}", widths[-1], widths[-1]) for i in range(blocks))
        shapes |= norm(f"{part}.norm_out", width)
    shapes |= conv("encoder.conv_out", widths[-1], dim, 1, 1) | conv("decoder.conv_in", dim, widths[-1], 3, 3)
    return shapes | conv("decoder.conv_out", widths[0], 3, 3, 3)


def tiny_table() -> Shapes:
    return table(32, [1, 2, 2], 1, 7)


@pytest.mark.parametrize(
    ("name", "mult", "dim"),
    [
        ("open_magvit2_256", [1, 1, 2, 2, 4], 18),
        ("open_magvit2_128", [1, 2, 2, 4], 18),
        ("open_magvit2_16384", [1, 1, 2, 2, 4], 14),
    ],
)
def test_full_size_checkpoints_of_the_authors_fit(name: str, mult: list[int], dim: int) -> None:
    theirs = meta(with_averages(table(128, mult, 4, dim)))
    with torch.device("meta"):
        model: Any = vistok.tokenizer(name)
    assert misfits(model, model.rename_keys(theirs)) == []
    model.load_state_dict(model.rename_keys(theirs))
    assert model.codebook_sizes == (2**dim,)
    if name == "open_magvit2_256":
        for part, tensors, numbers in (("encoder", 159, 49_751_442), ("decoder", 180, 65_376_387)):
            state = getattr(model, part).state_dict()
            assert (len(state), sum(value.numel() for value in state.values())) == (tensors, numbers)


def test_a_key_that_is_renamed_missing_or_of_another_shape_is_named(tmp_path: Path) -> None:
    tensors = drawn(tiny_table())
    tensors["encoder.conv_entry.weight"] = tensors.pop("encoder.conv_in.weight")
    del tensors["decoder.adaptive.1.beta.bias"]
    tensors["decoder.conv_in.weight"] = tensors["decoder.conv_in.weight"][:, :5]
    torch.save({"state_dict": tensors}, tmp_path / "magvit2.ckpt")
    with pytest.raises(ValueError) as raised:
        vistok.tokenizer("open_magvit2_256", checkpoint=tmp_path / "magvit2.ckpt", **SIZES)
    for part in (
        "missing encoder.conv_in.weight [32, 3, 3, 3]",
        "missing decoder.adaptive.1.beta.bias [64]",
        "unexpected encoder.conv_entry.weight",
        "decoder.conv_in.weight: expected [64, 7, 3, 3], got [64, 5, 3, 3]",
    ):
        assert part in str(raised.value)


@torch.no_grad()
def test_ids_are_signs_with_channel_0_lowest_of_the_averaged_weights_and_any_size_decodes(tmp_path: Path) -> None:
    plain, averages = drawn(tiny_table()), drawn(tiny_table(), seed=1)
    dotless = {f"model_ema.{name.replace('.', '')}": value for name, value in averages.items()}
    torch.save({"state_dict": plain | dotless}, tmp_path / "magvit2.ckpt")
    images = torch.rand(2, 3, 22, 35, generator=torch.Generator().manual_seed(1))
    found = []
    for ema in (True, False):
        model: Any = vistok.tokenizer("open_magvit2_256", checkpoint=tmp_path / "magvit2.ckpt", ema=ema, **SIZES)
        tokens = model.eval().encode(images)
        signs = tokens.embeds > 0
        assert set(tokens.embeds.unique().tolist()) == {-1.0, 1.0}
        assert torch.equal(tokens.indices, (signs * 2 ** torch.arange(7)).sum(-1))
        parts = split_ids(tokens.indices, (3, 4))
        assert torch.equal(parts[..., 0], (signs[..., :3] * 2 ** torch.arange(3)).sum(-1))
        assert torch.equal(join_ids(parts, (3, 4)), tokens.indices)
        assert model.decode(tokens.replace(embeds=None)).shape == images.shape
        found.append(tokens.indices)
    assert not torch.equal(*found)
