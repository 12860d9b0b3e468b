"""Depth to 0..1 with the nearest at 1, and back: which way it grows, and what of its range is used.

r = d ("near_high": relative maps, disparity), 1 / d or -d ("near_low": metres);  v = (r - lo) / (hi - lo), clamped.
"minmax": lo, hi of each map; "percentile": its 2nd and 98th; "none": 0 and 1 (255 where the map is uint8).
Reciprocal metres are what monocular networks predict up to scale and shift (arXiv:1907.01341) and give half of 0..1 to
the nearest third of the scene; linear ones treat all metres alike. B maps of H x W pixels.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

POLARITIES = ("near_high", "near_low")
NORMALIZATIONS = ("minmax", "percentile", "none")
INVERSIONS = ("reciprocal", "linear")
_SHARES = (0.02, 0.98)


class Ranged(NamedTuple):
    """values [B, 1, H, W] float32 in 0..1, nearest high; low, high [B] float32: where 0 and 1 lie."""

    values: Tensor
    low: Tensor
    high: Tensor


@dataclass(frozen=True)
class DepthRange:
    """How depth maps are written. inversion: how "near_low" becomes nearest high; "near_high" maps need none."""

    polarity: str = "near_high"
    normalize: str = "minmax"
    inversion: str = "reciprocal"

    def __post_init__(self) -> None:
        for name, known in (("polarity", POLARITIES), ("normalize", NORMALIZATIONS), ("inversion", INVERSIONS)):
            if getattr(self, name) not in known:
                raise ValueError(f"depth: expected {name} in {known}, got {getattr(self, name)!r}")

    def apply(self, maps: Tensor) -> Ranged:
        """maps [B, 1, H, W] or [B, H, W], float or uint8 -> values in 0..1 with their limits; constant maps are zeros.

        Raises: ValueError naming a shape that is none of maps, values that are not finite, metres <= 0 where their
        reciprocal is asked for, or values outside 0..1 where nothing is normalised.
        """
        maps = maps[:, None] if maps.ndim == 3 else maps
        if maps.ndim != 4 or maps.shape[1] != 1 or not maps.numel():
            raise ValueError(f"depth: expected maps [B, 1, H, W] or [B, H, W], got {list(maps.shape)}")
        values = maps.float() / 255 if maps.dtype == torch.uint8 else maps.float()
        if not bool(values.isfinite().all()):
            raise ValueError("depth: expected finite maps, got NaN or infinity; fill what the sensor did not see first")
        values = self._near_high(values)
        low, high = self._limits(values)
        span = (high - low).view(-1, 1, 1, 1)
        scaled = (values - low.view(-1, 1, 1, 1)) / span.where(span > 0, 1.0)
        return Ranged(scaled.clamp(0, 1).where(span > 0, 0.0), low, high)

    def undo(self, values: Tensor, low: Tensor, high: Tensor) -> Tensor:
        """values [B, 1, H, W] in 0..1 and limits [B] -> maps [B, 1, H, W] of the polarity, in the unit they came in."""
        low, high = low.view(-1, 1, 1, 1), high.view(-1, 1, 1, 1)
        near_high = low + values.float().clamp(0, 1) * (high - low)
        if self.polarity == "near_high":
            return near_high
        return 1 / near_high if self.inversion == "reciprocal" else -near_high

    def _near_high(self, values: Tensor) -> Tensor:
        if self.polarity == "near_high":
            return values
        if self.inversion == "linear":
            return -values
        if bool((values <= 0).any()):
            raise ValueError(
                f"depth: expected metres > 0 to take the reciprocal of, got {float(values.min()):.3g}; fill what the "
                "sensor did not see first, or use inversion='linear'"
            )
        return 1 / values

    def _limits(self, values: Tensor) -> tuple[Tensor, Tensor]:
        flat = values.flatten(1)
        if self.normalize == "minmax":
            return flat.amin(1), flat.amax(1)
        if self.normalize == "percentile":
            # quantile sorts all of it, and refuses more than 2^24 values.
            order = flat.sort(1).values
            places = [round(share * (order.shape[1] - 1)) for share in _SHARES]
            return order[:, places[0]], order[:, places[1]]
        low, high = float(values.min()), float(values.max())
        if low < 0 or high > 1:
            raise ValueError(f"depth: expected maps in 0..1 to leave as they are, got {low:.3g}..{high:.3g}")
        return values.new_zeros(len(values)), values.new_ones(len(values))
