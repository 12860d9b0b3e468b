"""Binary spherical quantization (arXiv:2406.07548): the op `vistok.ops.bsq` with the losses of LFQ.

Commitment and entropy terms are those of LFQ with u = z/|z| in place of z and the scaled codes:
commitment = mean (u - sg code)^2, p(code | z) = softmax(2 u.c / T).
"""

from torch import Tensor

from vistok.ops.bsq import bsq, bsq_unpack, magnitude
from vistok.ops.straight_through import unit_vectors
from vistok.quantizers.lfq import LFQ
from vistok.registry import register


@register
class BSQ(LFQ):
    """2^dim sign codes of length 1 and width dim; settings as LFQ."""

    def lookup(self, indices: Tensor) -> Tensor:
        """ids [...] int64 -> codes [..., D] float32, zero where the id is -1. Raises: ValueError for other ids."""
        return bsq_unpack(indices, self.dim, bit_order=self.bit_order)

    @property
    def magnitude(self) -> float:
        """1 / sqrt(D): codes have length 1."""
        return magnitude(self.dim)

    def _vectors(self, rows: Tensor) -> Tensor:
        return unit_vectors(rows)

    def _quantize(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        return bsq(rows, bit_order=self.bit_order)
