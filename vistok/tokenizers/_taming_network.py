"""The network of taming-transformers' VQGAN (arXiv:2012.09841): diffusers' VQModel with attention at given levels."""

from collections.abc import Sequence
from typing import Any

from vistok.tokenizers._vq_model import vq_model


def taming_network(
    ch: int, ch_mult: Sequence[int], num_res_blocks: int, z_channels: int, dim: int, attention_levels: Sequence[int]
) -> Any:
    """Encoder, decoder, quant_conv and post_quant_conv as attributes; attention also in the middle of both.

    attention_levels: 0 = full resolution. The authors give resolutions instead, which hold for the training size only.
    Raises: ValueError for a level that there is not.
    """
    levels = range(len(ch_mult))
    if not set(attention_levels) <= set(levels):
        raise ValueError(f"expected attention_levels in 0..{len(levels) - 1}, got {list(attention_levels)}")
    attends = [level in attention_levels for level in levels]
    return vq_model(
        [ch * factor for factor in ch_mult],
        num_res_blocks,
        z_channels,
        dim,
        down_block_types=tuple("AttnDownEncoderBlock2D" if attend else "DownEncoderBlock2D" for attend in attends),
        up_block_types=tuple("AttnUpDecoderBlock2D" if attend else "UpDecoderBlock2D" for attend in attends[::-1]),
    )
