"""Greedy k-center: take the token farthest from all taken ones, again and again (Gonzalez 1985, within 2x of optimal).

m_i = min over taken j of d(i, j); next = argmax_i m_i, ties to the lowest slot. O(B N D) time and memory per step.
d: "l2" |a - b|^2, or "cosine" the same on unit vectors, 2 - 2 cos(a, b): squaring changes no comparison, and distances
summed over differences are exactly 0 between equal tokens and do not depend on the batch, as matrix products may.
"""

from typing import Any

import torch
from torch import Tensor

from vistok.ops.budget import as_selection, best_slots, kept_tokens
from vistok.protocols import Budget
from vistok.pruning._context import refuse_context
from vistok.registry import register
from vistok.tokens import Selection, TokenTensor

METRICS = ("cosine", "l2")
STARTS = ("medoid", "max_norm")


@register
class KCenter:
    """Keeps tokens that cover the set of `embeds`."""

    cannot: frozenset[str] = frozenset()
    needs: frozenset[str] = frozenset()

    def __init__(self, *, metric: str = "cosine", start: str | int = "medoid") -> None:
        """metric: "cosine" or "l2". start: "medoid" (least sum of squared distances), "max_norm" or a slot.

        An item with fewer tokens than the start slot starts at its last one. Raises: ValueError naming the setting.
        """
        if metric not in METRICS:
            raise ValueError(f"k_center: expected metric to be one of {METRICS}, got {metric!r}")
        is_slot = isinstance(start, int) and not isinstance(start, bool) and start >= 0
        if start not in STARTS and not is_slot:
            raise ValueError(f"k_center: expected start to be one of {STARTS} or a slot >= 0, got {start!r}")
        self.metric = metric
        self.start = start

    @torch.no_grad()
    def select(self, tokens: TokenTensor, budget: Budget, **context: Any) -> Selection:
        """Slots [B, K] ascending.

        Raises: TypeError for any context, ValueError for a budget out of range or tokens without embeds.
        """
        refuse_context("k_center", context, self.needs)
        if tokens.embeds is None:
            raise ValueError(
                "k_center: expected tokens with embeds, got indices only; look them up first: "
                "tokens.replace(embeds=quantizer.lookup(tokens.indices))"
            )
        slots, counts = kept_tokens(tokens, budget)
        valid = tokens.mask
        points = tokens.embeds.to(torch.promote_types(tokens.embeds.dtype, torch.float32))
        points = points.masked_fill(~valid[:, :, None], 0)
        norms = points.square().sum(dim=2)
        if self.metric == "cosine":
            points = torch.nn.functional.normalize(points, dim=2)
        ranks = torch.full_like(valid, tokens.num_slots, dtype=torch.int64)
        if slots:
            ranks = _farthest_first(points, valid, self._first(points, norms, valid), slots)
        return as_selection(tokens, best_slots(ranks, slots, counts), counts, budget)

    def _first(self, points: Tensor, norms: Tensor, valid: Tensor) -> Tensor:
        if self.start == "medoid":
            # sum_j |x_i - x_j|^2 = n |x_i - mean|^2 + a constant. Summed in float64 and rounded, so that trailing
            # padding, which changes the order of summation, does not decide between equals.
            lengths = valid.sum(dim=1).clamp(min=1)
            mean = (points.double().sum(dim=1) / lengths[:, None]).to(points.dtype)
            return _first_largest(-_distances(points, mean), valid)
        if self.start == "max_norm":
            return _first_largest(norms, valid)
        return valid.sum(dim=1).sub(1).clamp(min=0, max=int(self.start))


def _farthest_first(points: Tensor, valid: Tensor, pick: Tensor, steps: int) -> Tensor:
    """Ranks [B, N] int64 in the order of picking, N where a token is not picked: points [B, N, D], pick [B] first."""
    batch, slots = valid.shape
    position = torch.arange(slots, device=points.device)
    ranks = torch.full((batch, slots), slots, dtype=torch.int64, device=points.device)
    nearest = torch.full((batch, slots), torch.inf, dtype=points.dtype, device=points.device)
    free = valid
    for step in range(steps):
        picked = (position == pick[:, None]) & free  # an item without free tokens picks nothing
        ranks = ranks.masked_fill(picked, step)
        free = free & ~picked
        center = points.gather(1, pick[:, None, None].expand(-1, -1, points.shape[2])).squeeze(1)
        nearest = torch.minimum(nearest, _distances(points, center))
        pick = _first_largest(nearest, free)
    return ranks


def _distances(points: Tensor, center: Tensor) -> Tensor:
    """Squared distances [B, N] of points [B, N, D] to center [B, D]."""
    return (points - center[:, None]).square().sum(dim=2)


def _first_largest(values: Tensor, allowed: Tensor) -> Tensor:
    """Slot [B] of the largest allowed value [B, N], the lowest among equals; NaN counts as least, 0 if none is allowed.

    On GPUs argmax promises no order among equals.
    """
    values = values.nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)
    best = values.masked_fill(~allowed, -torch.inf).amax(dim=1, keepdim=True)
    position = torch.arange(values.shape[1], device=values.device)
    first = torch.where(allowed & (values == best), position, values.shape[1]).amin(dim=1)
    return torch.where(first < values.shape[1], first, 0)
