"""Binary spherical quantization: signs of a unit vector, so the codes lie on the sphere too (arXiv:2406.07548).

u = z/|z|, code = sign(u)/sqrt(D) with sign(0) = -1, K = 2^D; the rest is LFQ with u in place of z: commitment =
mean (u - sg code)^2, entropy terms of softmax(2 u.c / T) with the scaled codes. The gradient passes straight through
to u, and from there through the normalisation to z.
"""

import math

from torch import Tensor

from vistok.ops.straight_through import unit_vectors
from vistok.quantizers.lfq import LFQ
from vistok.registry import register


@register
class BSQ(LFQ):
    """2^dim sign codes of length 1 and width dim; settings as LFQ."""

    @property
    def magnitude(self) -> float:
        """1 / sqrt(D): codes have length 1."""
        return 1 / math.sqrt(self.dim)

    def _vectors(self, rows: Tensor) -> Tensor:
        # Signs are read from z itself: dividing by the length can only lose the sign of a tiny channel.
        return unit_vectors(rows)
