"""Names and shapes of the tensors in published checkpoints, written down from their authors' code, for any sizes."""

import re
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

Shapes = dict[str, tuple[int, ...]]


def meta(shapes: Shapes) -> dict[str, Tensor]:
    """Tensors of those shapes without values."""
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


def drawn(shapes: Shapes, seed: int = 0) -> dict[str, Tensor]:
    """Tensors of those shapes whose values keep activations near 1, so that ids differ from place to place."""
    generator = torch.Generator().manual_seed(seed)
    values = {}
    for name, shape in shapes.items():
        value = torch.randn(shape, generator=generator)
        fan = torch.Size(shape[1:]).numel()
        if name.endswith("running_var"):
            value = 0.5 + value.abs()
        elif len(shape) == 1 and "norm" in name and name.endswith("weight"):
            value = 1 + 0.1 * value
        elif len(shape) == 1:
            value = 0.1 * value
        elif len(shape) > 1 and "embedding" not in name and "codebook" not in name:
            value = value * fan**-0.5 * (4 if name.startswith("quant") else 1)
        values[name] = value
    return values


def conv(name: str, inputs: int, outputs: int, *kernel: int, bias: bool = True) -> Shapes:
    shapes: Shapes = {f"{name}.weight": (outputs, inputs, *kernel)}
    return shapes | ({f"{name}.bias": (outputs,)} if bias else {})


def norm(name: str, width: int) -> Shapes:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def joined(parts: Iterable[Shapes]) -> Shapes:
    return {name: shape for part in parts for name, shape in part.items()}


def block(name: str, inputs: int, outputs: int) -> Shapes:
    shapes = norm(f"{name}.norm1", inputs) | conv(f"{name}.conv1", inputs, outputs, 3, 3)
    shapes |= norm(f"{name}.norm2", outputs) | conv(f"{name}.conv2", outputs, outputs, 3, 3)
    return shapes | (conv(f"{name}.nin_shortcut", inputs, outputs, 1, 1) if inputs != outputs else {})


def attention(name: str, width: int) -> Shapes:
    projections = joined(conv(f"{name}.{part}", width, width, 1, 1) for part in ("q", "k", "v", "proj_out"))
    return norm(f"{name}.norm", width) | projections


def middle(name: str, width: int) -> Shapes:
    return (
        block(f"{name}.mid.block_1", width, width)
        | attention(f"{name}.mid.attn_1", width)
        | block(f"{name}.mid.block_2", width, width)
    )


def taming_encoder(
    ch: int, mult: Sequence[int], blocks: int, out: int, *, attend: Sequence[int] = (), ends: int = 3, halve: int
) -> Shapes:
    """taming-transformers' encoder of `ends`-channel images; attention at levels `attend`, the first `halve` halve."""
    widths = [ch * factor for factor in (1, *mult)]
    shapes = conv("encoder.conv_in", ends, ch, 3, 3)
    for level in range(len(mult)):
        for i in range(blocks):
            inputs = widths[level] if i == 0 else widths[level + 1]
            shapes |= block(f"encoder.down.{level}.block.{i}", inputs, widths[level + 1])
            if level in attend:
                shapes |= attention(f"encoder.down.{level}.attn.{i}", widths[level + 1])
        if level < halve:
            shapes |= conv(f"encoder.down.{level}.downsample.conv", widths[level + 1], widths[level + 1], 3, 3)
    shapes |= middle("encoder", widths[-1]) | norm("encoder.norm_out", widths[-1])
    return shapes | conv("encoder.conv_out", widths[-1], out, 3, 3)


def taming_decoder(
    ch: int,
    mult: Sequence[int],
    blocks: int,
    inputs: int,
    *,
    attend: Sequence[int] = (),
    ends: int = 3,
    double: int,
) -> Shapes:
    """taming-transformers' decoder; level 0 is the finest, the last `double` levels double the sides."""
    widths = [ch * factor for factor in mult]
    last = len(mult) - 1
    shapes = conv("decoder.conv_in", inputs, widths[-1], 3, 3) | middle("decoder", widths[-1])
    for level, width in enumerate(widths):
        for i in range(blocks + 1):
            before = widths[min(level + 1, last)] if i == 0 else width
            shapes |= block(f"decoder.up.{level}.block.{i}", before, width)
            if level in attend:
                shapes |= attention(f"decoder.up.{level}.attn.{i}", width)
        if level > last - double:
            shapes |= conv(f"decoder.up.{level}.upsample.conv", width, width, 3, 3)
    shapes |= norm("decoder.norm_out", widths[0])
    return shapes | conv("decoder.conv_out", widths[0], ends, 3, 3)


def code_table(codes: int, dim: int, z: int) -> Shapes:
    """The codes and the 1x1 convolutions on both sides of them."""
    around = conv("quant_conv", z, dim, 1, 1) | conv("post_quant_conv", dim, z, 1, 1)
    return {"quantize.embedding.weight": (codes, dim)} | around


def renamed(shapes: Shapes, *patterns: tuple[str, str]) -> Shapes:
    """The same shapes with each regular expression replaced in every name."""
    out = {}
    for name, shape in shapes.items():
        for pattern, replacement in patterns:
            name = re.sub(pattern, replacement, name)
        out[name] = shape
    return out


def llamagen_network(ch: int, mult: list[int], blocks: int, z: int, dim: int, codes: int) -> Shapes:
    """LlamaGen's names, which Janus' authors keep: conv_blocks, whose first in the decoder is the coarsest."""
    last = len(mult) - 1
    decoder = taming_decoder(ch, mult, blocks, z, attend=[last], double=last)
    for level in range(last + 1):
        decoder = renamed(decoder, (rf"^decoder\.up\.{level}\.", f"decoder.conv_blocks.#{last - level}."))
    network = taming_encoder(ch, mult, blocks, z, attend=[last], halve=last) | decoder | code_table(codes, dim, z)
    places = [(rf"\.mid\.{name}\.", f".mid.{i}.") for i, name in enumerate(("block_1", "attn_1", "block_2"))]
    return renamed(network, ("#", ""), (r"^encoder\.down\.", "encoder.conv_blocks."), (r"\.block\.", ".res."), *places)
