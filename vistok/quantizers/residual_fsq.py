"""Residual finite scalar quantization: every level rounds what the levels before it left over, on a finer grid.

r_0 = c tanh(z / c), c = L / (L - 1);  r_{i+1} = r_i - s_i q(r_i / s_i), s_i = L^-i;  embeds = sum_i s_i q(r_i / s_i)
q(x) = 2 digit / (L - 1) - 1, digit = floor((L - 1) (clamp(x, -1, 1) + 1) / 2 + 1/2): levels symmetric around zero.
All cells of q are 2 / (L - 1) wide on [-c, c], so what is left over is c / L at most: s_1 times the range of r_0, and
no level clamps. The same as ResidualFSQ of vector-quantize-pytorch 1.32; [..., Q] ids, channel 0 counts least.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vistok.ops.check_ids import check_ids
from vistok.ops.code_usage import batch_usage
from vistok.ops.fsq import check_levels
from vistok.ops.straight_through import straight_through
from vistok.ops.valid_rows import padded, valid_rows
from vistok.protocols import Quantized
from vistok.registry import register


@register
class ResidualFSQ(nn.Module):
    """`depth` ids to a vector, each of prod(levels) codes. No losses, no parameters."""

    cannot: frozenset[str] = frozenset()
    sizes: Tensor
    places: Tensor

    def __init__(self, levels: Sequence[int] = (8, 5, 5, 3), depth: int = 4) -> None:
        """levels: of each channel, in every round. depth: rounds.

        Raises: ValueError unless depth >= 1, there is at least one level, all are in 2..65536 and ids fit int64.
        """
        super().__init__()
        check_levels(levels)
        if depth < 1:
            raise ValueError(f"residual_fsq: expected depth >= 1, got {depth}")
        self.levels = tuple(levels)
        self.depth = depth
        self.dim = len(levels)
        self.codebook_sizes: tuple[int, ...] = (math.prod(levels),) * depth
        places = [math.prod(levels[:channel]) for channel in range(len(levels))]
        self.register_buffer("sizes", torch.tensor(levels), persistent=False)
        self.register_buffer("places", torch.tensor(places), persistent=False)

    def forward(self, z: Tensor, mask: Tensor | None = None) -> Quantized:
        """z [..., D], mask [...] bool -> Quantized with ids [..., Q]; gradients straight through the rounding."""
        with torch.autocast(z.device.type, enabled=False):
            rows = valid_rows("residual_fsq", z, self.dim, mask).float()
            reach = self.sizes / (self.sizes - 1)
            bounded = (rows / reach).tanh() * reach
            left, embeds = bounded.detach(), torch.zeros_like(bounded.detach())
            found: list[Tensor] = []
            for level in range(self.depth):
                scale = self._scale(level)
                digits = ((self.sizes - 1) * ((left / scale).clamp(-1, 1) + 1) / 2 + 0.5).floor().to(torch.int64)
                codes = self._codes(digits) * scale
                left, embeds = left - codes, embeds + codes
                found.append((digits * self.places).sum(-1))
            ids = torch.stack(found, -1)
            embeds = straight_through(bounded, embeds).to(z.dtype)
        uses = [batch_usage(column, self.codebook_sizes[0]) for column in found]
        stats = {name: torch.stack([use[name] for use in uses]).mean() for name in uses[0]}
        lead, loss = z.shape[:-1], torch.zeros((), device=z.device)
        return Quantized(padded(embeds, lead, mask), padded(ids, lead, mask, fill=-1), loss, stats)

    def lookup(self, indices: Tensor) -> Tensor:
        """ids [..., Q] int64 -> embeds [..., D] float32; a level whose id is -1 adds nothing.

        Raises: ValueError if there are not Q ids to a vector, or ids out of range.
        """
        if not indices.ndim or indices.shape[-1] != self.depth:
            raise ValueError(f"residual_fsq: expected ids [..., {self.depth}], got {list(indices.shape)}")
        check_ids("residual_fsq", indices, self.codebook_sizes[0])
        digits = indices.clamp(min=0).unsqueeze(-1) // self.places % self.sizes
        codes = self._codes(digits).where(indices.unsqueeze(-1) >= 0, 0.0)
        total = torch.zeros_like(codes[..., 0, :])
        for level, part in enumerate(codes.unbind(-2)):
            total = total + part * self._scale(level)
        return total

    def _codes(self, digits: Tensor) -> Tensor:
        return 2 * digits.float() / (self.sizes - 1) - 1

    def _scale(self, level: int) -> Tensor:
        return self.sizes.float() ** -level
