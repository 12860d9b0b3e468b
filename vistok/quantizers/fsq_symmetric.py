"""Finite scalar quantization with levels that lie symmetric around zero (arXiv:2411.19842, section 3.2). No parameters.

digit = floor((L - 1) (tanh z + 1) / 2 + 1/2);  code = 2 digit / (L - 1) - 1, from -1 to 1 for even and odd L alike;
id = sum_i digit_i prod_{j<i} L_j. The gradient is that of tanh z. L = 2 gives signs.
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
class SymmetricFSQ(nn.Module):
    """Levels per channel, e.g. [6, 6, 6, 6] = 1296 codes of width 4; `fsq` is the one of the first paper."""

    cannot: frozenset[str] = frozenset()
    sizes: Tensor
    places: Tensor

    def __init__(self, levels: Sequence[int] = (8, 8, 8, 5, 5, 5)) -> None:
        """Raises: ValueError unless there is at least one level, all are in 2..65536 and ids fit int64."""
        super().__init__()
        check_levels(levels)
        self.levels = tuple(levels)
        self.dim = len(levels)
        self.codebook_sizes: tuple[int, ...] = (math.prod(levels),)
        places = [math.prod(levels[:channel]) for channel in range(len(levels))]
        self.register_buffer("sizes", torch.tensor(levels), persistent=False)
        self.register_buffer("places", torch.tensor(places), persistent=False)

    def forward(self, z: Tensor, mask: Tensor | None = None) -> Quantized:
        """z [..., D], mask [...] bool -> Quantized; embeds in [-1, 1], gradients straight through the rounding."""
        with torch.autocast(z.device.type, enabled=False):
            bounded = torch.tanh(valid_rows("fsq_symmetric", z, self.dim, mask).float())
            digits = ((self.sizes - 1) * (bounded.detach() + 1) / 2 + 0.5).floor().to(torch.int64)
            embeds = straight_through(bounded, self._codes(digits)).to(z.dtype)
            ids = (digits * self.places).sum(-1)
        lead = z.shape[:-1]
        stats = batch_usage(ids, self.codebook_sizes[0])
        loss = torch.zeros((), device=z.device)
        return Quantized(padded(embeds, lead, mask), padded(ids, lead, mask, fill=-1), loss, stats)

    def lookup(self, indices: Tensor) -> Tensor:
        """ids [...] int64 -> codes [..., D] float32, zero where the id is -1. Raises: ValueError for other ids."""
        check_ids("fsq_symmetric", indices, self.codebook_sizes[0])
        digits = indices.clamp(min=0).unsqueeze(-1) // self.places % self.sizes
        return self._codes(digits).where(indices.unsqueeze(-1) >= 0, 0.0)

    def _codes(self, digits: Tensor) -> Tensor:
        return 2 * digits.float() / (self.sizes - 1) - 1
