"""Greedy k-center: take the token farthest from all taken ones, again and again (Gonzalez 1985, within 2x of optimal).

m_i = min over taken j of d(i, j); next = argmax_i m_i, ties to the lowest slot (vistok.ops.k_center). d: "l2"
|a - b|^2, or "cosine" 1 - cos(a, b). Tokens with NaN or infinity are taken last, from the front.
"""

from typing import Any

import torch
from torch import Tensor

from vistok.ops.budget import as_selection, best_slots, kept_tokens
from vistok.ops.k_center import METRICS, k_center
from vistok.ops.token_choice import finite_tokens, first_largest
from vistok.ops.token_points import compared, distance_to_mean
from vistok.protocols import Budget
from vistok.pruning._context import refuse_context
from vistok.pruning._embeds import embeds_of
from vistok.pruning._picks import pick_ranks
from vistok.registry import register
from vistok.tokens import Selection, TokenTensor

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
        embeds = embeds_of("k_center", tokens)
        slots, counts = kept_tokens(tokens, budget)
        valid = tokens.mask
        first = self._first(embeds, valid)
        centers = k_center(embeds, slots, self.metric, start=first, valid=valid).indices
        return as_selection(tokens, best_slots(pick_ranks(centers, valid), slots, counts), counts, budget)

    def _first(self, embeds: Tensor, valid: Tensor) -> Tensor:
        if isinstance(self.start, int):
            return valid.sum(dim=1).sub(1).clamp(min=0, max=self.start)
        usable = valid & finite_tokens(embeds)
        if self.start == "max_norm":
            return first_largest(compared(embeds, usable, "l2").square().sum(dim=2), usable)
        # sum_j |x_i - x_j|^2 = n |x_i - mean|^2 + a constant.
        return first_largest(-distance_to_mean(compared(embeds, usable, self.metric), usable), usable)
