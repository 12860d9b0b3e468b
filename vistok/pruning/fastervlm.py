"""FasterVLM: [CLS] Attention is All You Need for Training-Free Visual Token Pruning, arXiv:2412.01818.

The K tokens to which the class token of the vision tower attends most stay, in their order. The attention is that of
the tower's second-last layer, from which LLaVA takes its tokens, averaged over heads.
Ours: equal scores go to the lowest slot; a tower without a class token gives what tokens receive on average.
"""

from typing import Any

import torch
from torch import Tensor

from vistok.ops.budget import as_selection, best_slots, kept_tokens
from vistok.protocols import Budget
from vistok.pruning._context import refuse_context, required_context
from vistok.pruning._ranks import score_ranks
from vistok.registry import register
from vistok.tokens import Selection, TokenTensor


@register
class FasterVLM:
    """Keeps the tokens that the vision tower attends to most."""

    cannot: frozenset[str] = frozenset()
    needs: frozenset[str] = frozenset({"attention"})
    tower_layer = -2

    @torch.no_grad()
    def select(
        self, tokens: TokenTensor, budget: Budget, *, attention: Tensor | None = None, **context: Any
    ) -> Selection:
        """Slots [B, K] ascending; attention [B, N], which the scores are.

        Raises: TypeError for other context; ValueError for a budget out of range, attention missing or misshapen.
        """
        refuse_context("fastervlm", context, self.needs)
        scores = required_context("fastervlm", "attention", attention, *tokens.mask.shape)
        slots, counts = kept_tokens(tokens, budget)
        index = best_slots(score_ranks(scores, tokens.mask), slots, counts)
        return as_selection(tokens, index, counts, budget)._replace(scores=scores.float())
