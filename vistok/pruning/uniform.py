"""Evenly spaced tokens: the baseline that every pruner has to beat.

Of n valid tokens, k are kept: those at floor((i + 1/2) n / k), i = 0..k-1, in the middle of k equal stretches.
"""

from typing import Any

import torch

from vistok.ops.budget import as_selection, kept_tokens
from vistok.protocols import Budget
from vistok.pruning._context import refuse_context
from vistok.registry import register
from vistok.tokens import Selection, TokenTensor


@register
class Uniform:
    """Keeps evenly spaced valid tokens."""

    cannot: frozenset[str] = frozenset()
    needs: frozenset[str] = frozenset()

    def select(self, tokens: TokenTensor, budget: Budget, **context: Any) -> Selection:
        """Slots [B, K] ascending. Raises: TypeError for any context, ValueError for a budget out of range."""
        refuse_context("uniform", context, self.needs)
        slots, counts = kept_tokens(tokens, budget)
        step = torch.arange(slots, device=tokens.device)
        # Integers, because (i + 1/2) n / k in floating point can fall below the whole number that it is.
        index = (2 * step + 1) * tokens.valid_lengths[:, None] // (2 * counts[:, None]).clamp(min=1)
        index = index.clamp(max=max(tokens.num_slots - 1, 0))  # only steps past an item's count go further
        return as_selection(tokens, index, counts, budget)
