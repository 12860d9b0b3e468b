"""Tokens as points to be compared: made ready, their distances and products. B items, N token slots, D width."""

import torch
from torch import Tensor

_NUMBERS, _SUMMED = 1 << 24, 256


def compared(x: Tensor, usable: Tensor, metric: str) -> Tensor:
    """Points [B, N, D] in float32 or float64: x, for "cosine" at unit length; zero where a token does not count."""
    points: Tensor = x.detach().to(torch.promote_types(x.dtype, torch.float32))
    points = points.masked_fill(~usable[:, :, None], 0)
    if metric == "cosine":
        norms = torch.linalg.vector_norm(points, dim=2, keepdim=True, dtype=torch.float64)
        points = points / norms.where(norms > 0, 1).to(points.dtype)
    return points


def moved_by_mean(points: Tensor, usable: Tensor) -> Tensor:
    """points [B, N, D] minus the mean of those usable [B, N], others zero: distances are as before, products smaller.

    The mean is rounded to a power of two so coarse that whole numbers stay whole.
    """
    mean = _mean(points, usable)
    outside = ~usable[:, :, None]
    moved = (points - mean[:, None]).masked_fill_(outside, 0)
    spread = moved.abs().amax((1, 2)) if moved.numel() else moved.new_zeros(len(moved))
    step = torch.exp2(torch.log2(spread.clamp(min=2.0**-126)).floor())[:, None]
    return (points - ((mean / step).round() * step)[:, None]).masked_fill_(outside, 0)


def distance_to_mean(points: Tensor, usable: Tensor) -> Tensor:
    """Squared distance [B, N] of points [B, N, D], zero where not usable [B, N], to the mean of those that are.

    The mean is summed in float64 and rounded: trailing padding changes the order of summation, but not the result.
    """
    return squared_distances(points, _mean(points, usable))


def _mean(points: Tensor, usable: Tensor) -> Tensor:
    counts = usable.sum(1).clamp(min=1)
    total = torch.zeros(points.shape[0], points.shape[2], dtype=torch.float64, device=points.device)
    for part in points.split(_SUMMED, dim=1):
        total += part.double().sum(1)
    return (total / counts[:, None]).to(points.dtype)


def squared_distances(points: Tensor, center: Tensor) -> Tensor:
    """Squared distance [B, N] of points [B, N, D] to center [B, D], summed over differences, some slots at a time."""
    return torch.cat([(tile - center[:, None]).square().sum(2) for tile in points.split(_slots(points), 1)], 1)


def products(points: Tensor, center: Tensor) -> Tensor:
    """Product [B, N] of points [B, N, D] with center [B, D]; equal points have equal products, wherever they lie."""
    return torch.cat([(tile * center[:, None]).sum(2) for tile in points.split(_slots(points), 1)], 1)


def _slots(points: Tensor) -> int:
    """Slots that may be compared at once."""
    return max(1, _NUMBERS // max(1, points.shape[0] * points.shape[2]))
