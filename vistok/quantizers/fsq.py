"""Finite scalar quantization: round every channel to a few levels; the codebook is their product (arXiv:2309.15505).

h = (L-1)(1+eps)/2, o = 1/2 if L is even else 0, s = atanh(o/h);  b = tanh(z+s) h - o;  code = round(b) / floor(L/2)
id = sum_i digit_i prod_{j<i} L_j with digit_i = round(b_i) + floor(L_i/2): channel 0 varies fastest. No losses.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vistok.ops.check_ids import check_ids
from vistok.ops.code_usage import batch_usage
from vistok.ops.straight_through import straight_through
from vistok.ops.valid_rows import padded, valid_rows
from vistok.protocols import Quantized
from vistok.registry import register

_EPS = 1e-3


@register
class FSQ(nn.Module):
    """Levels per channel, e.g. [8, 8, 8, 5, 5, 5] = 64 000 codes of width 6."""

    cannot: frozenset[str] = frozenset()

    def __init__(self, levels: Sequence[int] = (8, 8, 8, 5, 5, 5)) -> None:
        """Raises: ValueError unless there is at least one level, all are >= 2 and ids fit int64."""
        super().__init__()
        if not levels or min(levels) < 2 or math.prod(levels) >= 2**63:
            raise ValueError(f"fsq: expected levels >= 2, at least one, product below 2^63, got {list(levels)}")
        self.levels = tuple(levels)
        self.dim = len(levels)
        self.codebook_sizes: tuple[int, ...] = (math.prod(levels),)
        self.level: Tensor
        self.place: Tensor
        # Only integers are stored: `.to(torch.bfloat16)` would round float constants and with them move ids.
        self.register_buffer("level", torch.tensor(self.levels), persistent=False)
        place = [math.prod(self.levels[:i]) for i in range(self.dim)]
        self.register_buffer("place", torch.tensor(place), persistent=False)

    def forward(self, z: Tensor, mask: Tensor | None = None) -> Quantized:
        """z [..., D], mask [...] bool -> Quantized; embeds in [-1, 1], gradients straight through the rounding."""
        with torch.autocast(z.device.type, enabled=False):
            rows = valid_rows("fsq", z, self.dim, mask).float()
            half_width = (self.level - 1) * (1 + _EPS) / 2
            offset = torch.where(self.level % 2 == 0, 0.5, 0.0)
            scale = self.level // 2
            bounded = torch.tanh(rows + torch.atanh(offset / half_width)) * half_width - offset
            rounded = bounded.detach().round()
            ids = ((rounded.to(torch.int64) + scale) * self.place).sum(-1)
            embeds = straight_through(bounded / scale, rounded / scale).to(z.dtype)
        lead = z.shape[:-1]
        return Quantized(
            padded(embeds, lead, mask),
            padded(ids, lead, mask, fill=-1),
            torch.zeros((), device=z.device),
            batch_usage(ids, self.codebook_sizes[0]),
        )

    def lookup(self, indices: Tensor) -> Tensor:
        """ids [...] int64 -> codes [..., D] float32, zero where the id is -1. Raises: ValueError for other ids."""
        check_ids("fsq", indices, self.codebook_sizes[0])
        scale = self.level // 2
        digits = indices.unsqueeze(-1) // self.place % self.level
        return ((digits - scale) / scale).where(indices.unsqueeze(-1) >= 0, 0.0)
