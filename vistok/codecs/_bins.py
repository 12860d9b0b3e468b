"""A coordinate in 0..1 as one of K bins, and back: the rules of three families of models.

"ends" (PaliGemma, arXiv:2407.07726): i = round(v (K-1)), v' = i / (K-1): the first and the last bin are the edges.
"floor" (Florence-2, arXiv:2311.06242): i = floor(v K), v' = (i + 1/2) / K: bins are cells, read at their middle.
"round" (AURORA, arXiv:2412.03548): i = round(v K), v' = i / K: bins are pixels. The last edge, K, is no bin, so there
the error is up to a whole bin; everywhere else, and in the other rules, at most half a bin.
All are clamped to 0..K-1, and round halves to the even number.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

RULES = ("ends", "floor", "round")
_SLACK = 1e-4


@dataclass(frozen=True)
class Bins:
    """count: K. Raises: ValueError for fewer than 2 bins or an unknown rule."""

    count: int
    rule: str

    def __post_init__(self) -> None:
        if self.count < 2 or self.rule not in RULES:
            raise ValueError(f"bins: expected at least 2 and a rule in {RULES}, got {self.count} and {self.rule!r}")

    def of(self, values: Tensor) -> Tensor:
        """values [...] float in 0..1 -> bins [...] int64. Raises: ValueError naming the dtype or range it was given."""
        if not values.is_floating_point():
            raise ValueError(f"coordinates: expected floats in 0..1, got {values.dtype}; divide by the image's size")
        # What a float32 is off. A value of 16 bits may be off by whole bins, either way, which no slack can mend.
        slack = min(torch.finfo(values.dtype).eps, torch.finfo(torch.float32).eps) * self.count
        values = values.double()
        if values.numel() and not (float(values.min()) >= -_SLACK and float(values.max()) <= 1 + _SLACK):
            raise ValueError(
                f"coordinates: expected 0..1, parts of the image's sides, got {float(values.min()):.4g}.."
                f"{float(values.max()):.4g}; divide pixels by the size of the image"
            )
        if self.rule == "floor":
            # 448 of 640 pixels is 0.7, in float32 0.69999999: a bin's own lower edge must not fall into the one before.
            found = (values * self.count + slack).floor()
        else:
            found = torch.round(values * (self.count - 1 if self.rule == "ends" else self.count))
        return found.clamp(0, self.count - 1).long()

    def values(self, bins: Tensor) -> Tensor:
        """bins [...] int64 -> values [...] float32 in 0..1."""
        if self.rule == "floor":
            return ((bins.double() + 0.5) / self.count).float()
        return (bins.double() / (self.count - 1 if self.rule == "ends" else self.count)).float()
