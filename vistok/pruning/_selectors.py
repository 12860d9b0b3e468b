"""From what tokens are worth and how alike they are to picks, one after the other. B items, N slots, D width, K picks.

q: worth, x: rows of length one, C: picks so far; the next pick is, among those that are left, the largest
"top_k" q_i; "max_min" q_i min_C (1 - x_i x_c); "max_sum" q_i (1 - mean_C x_i x_c); "suppress" q_i prod_C (1 - x_i x_c)
where x_i x_c > 0; "dpp" the determinant (vistok.pruning._dpp). All begin at the largest q_i; ties go to the lowest
slot; an item with fewer tokens than K repeats its last pick.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from vistok.ops.token_choice import first_largest
from vistok.ops.token_points import products
from vistok.pruning._dpp import greedy_dpp

Selector = Callable[[Tensor, Tensor, int, Tensor], Tensor]
# What is kept of the picks so far [B, N], from that and the cosines [B, N] with the latest one, of `step` before it.
Follow = Callable[[Tensor, Tensor, int], Tensor]


def top_k(points: Tensor, worth: Tensor, k: int, usable: Tensor) -> Tensor:
    """points [B, N, D], worth [B, N], usable [B, N] bool -> picks [B, K] int64. So do all selectors."""
    return _sweep(points, worth, k, usable, lambda kept, cosine, step: kept)


def max_min(points: Tensor, worth: Tensor, k: int, usable: Tensor) -> Tensor:
    """Far from the nearest pick."""
    return _sweep(points, worth, k, usable, lambda kept, cosine, step: kept.minimum(1 - cosine) if step else 1 - cosine)


def max_sum(points: Tensor, worth: Tensor, k: int, usable: Tensor) -> Tensor:
    """Unlike the picks on average."""
    return _sweep(points, worth, k, usable, lambda kept, cosine, step: (kept * step + 1 - cosine) / (step + 1))


def suppress(points: Tensor, worth: Tensor, k: int, usable: Tensor) -> Tensor:
    """Every pick takes worth from what is like it."""
    return _sweep(points, worth, k, usable, lambda kept, cosine, step: kept * (1 - cosine.clamp(0, 1)))


def dpp(points: Tensor, worth: Tensor, k: int, usable: Tensor) -> Tensor:
    """A set of large volume."""
    return greedy_dpp(points, worth, k, usable)


def _sweep(points: Tensor, worth: Tensor, k: int, usable: Tensor, follow: Follow) -> Tensor:
    picks = torch.zeros(len(points), k, dtype=torch.int64, device=points.device)
    if not usable.shape[1]:
        return picks
    left, factor, pick = usable, torch.ones_like(worth), picks[:, :1]
    for step in range(k):
        pick = torch.where(left.any(1, keepdim=True), first_largest(worth * factor, left)[:, None], pick)
        picks[:, step : step + 1] = pick
        left = left.scatter(1, pick, False)
        chosen = points.gather(1, pick[:, :, None].expand(-1, -1, points.shape[2])).squeeze(1)
        factor = follow(factor, products(points, chosen).to(worth), step)
    return picks


SELECTORS: dict[str, Selector] = {
    "top_k": top_k,
    "max_min": max_min,
    "max_sum": max_sum,
    "suppress": suppress,
    "dpp": dpp,
}
