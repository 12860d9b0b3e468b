"""Finite scalar quantization (arXiv:2309.15505): the op `vistok.ops.fsq` as a quantizer. No losses, no parameters."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vistok.ops.code_usage import batch_usage
from vistok.ops.fsq import check_levels, fsq, fsq_unpack
from vistok.ops.valid_rows import padded, valid_rows
from vistok.protocols import Quantized
from vistok.registry import register


@register
class FSQ(nn.Module):
    """Levels per channel, e.g. [8, 8, 8, 5, 5, 5] = 64 000 codes of width 6."""

    cannot: frozenset[str] = frozenset()

    def __init__(self, levels: Sequence[int] = (8, 8, 8, 5, 5, 5)) -> None:
        """Raises: ValueError unless there is at least one level, all are in 2..65536 and ids fit int64."""
        super().__init__()
        check_levels(levels)
        self.levels = tuple(levels)
        self.dim = len(levels)
        self.codebook_sizes: tuple[int, ...] = (math.prod(levels),)

    def forward(self, z: Tensor, mask: Tensor | None = None) -> Quantized:
        """z [..., D], mask [...] bool -> Quantized; embeds in [-1, 1], gradients straight through the rounding."""
        embeds, ids = fsq(valid_rows("fsq", z, self.dim, mask), self.levels)
        lead = z.shape[:-1]
        return Quantized(
            padded(embeds, lead, mask),
            padded(ids, lead, mask, fill=-1),
            torch.zeros((), device=z.device),
            batch_usage(ids, self.codebook_sizes[0]),
        )

    def lookup(self, indices: Tensor) -> Tensor:
        """ids [...] int64 -> codes [..., D] float32, zero where the id is -1. Raises: ValueError for other ids."""
        return fsq_unpack(indices, self.levels)
