"""CDPruner: Beyond Attention or Similarity: Maximizing Conditional Diversity for Token Pruning in MLLMs,
arXiv:2506.10967.

A determinantal point process conditioned on the instruction: L = diag(q) S diag(q), S_ij = cos(x_i, x_j) over the
projected tokens, q = (r - min r + 1e-6) / (max r - min r), r_i = sign * mean over the instruction's embeddings t of
cos(v_i, t); the K tokens are the greedy MAP of it. v_i: what a CLIP tower embeds patch i as, where there is a text
tower to embed the instruction; sign = -1 is in the authors' code, whose CLIP patches resemble most what they do not
show. Their minimum and maximum are over a whole batch; here they are of the item, which is the same for one image.
Ours: without image_embeds, v_i = x_i and t are the instruction's embeddings in the language model's space, for which
sign = 1 may suit better; a relevance that is the same everywhere, as without text, counts as q = 1; ties go to the
lowest slot.
"""

from typing import Any

import torch
from torch import Tensor

from vistok.ops.budget import as_selection, best_slots, kept_tokens
from vistok.ops.token_choice import finite_tokens
from vistok.ops.token_points import compared
from vistok.protocols import Budget
from vistok.pruning._context import refuse_context, required_context
from vistok.pruning._dpp import greedy_dpp
from vistok.pruning._embeds import embeds_of
from vistok.pruning._picks import pick_ranks
from vistok.registry import register
from vistok.tokens import Selection, TokenTensor


@register
class CDPruner:
    """Keeps tokens that the instruction is about and that are unlike one another."""

    cannot: frozenset[str] = frozenset()
    needs: frozenset[str] = frozenset({"text", "text_mask"})

    def __init__(self, *, sign: int = -1) -> None:
        """sign: -1 where cosines fall with relevance (CLIP towers), 1 where they rise. Raises: ValueError otherwise."""
        if sign not in (-1, 1):
            raise ValueError(f"cdpruner: expected sign -1 or 1, got {sign!r}")
        self.sign = sign

    @torch.no_grad()
    def select(
        self,
        tokens: TokenTensor,
        budget: Budget,
        *,
        text: Tensor | None = None,
        text_mask: Tensor | None = None,
        image_embeds: Tensor | None = None,
        **context: Any,
    ) -> Selection:
        """Slots [B, K] ascending; the scores are the relevance r.

        text: [B, T, C], embeddings of the instruction. text_mask: [B, T] bool, those that count, None = all.
        image_embeds: [B, N, C], the tokens in the space of the text; None = the embeds of the tokens, C = D.
        Raises: TypeError for other context; ValueError for a budget out of range, tokens without embeds, text missing,
        or context of another shape.
        """
        refuse_context("cdpruner", context, self.needs)
        embeds, valid = embeds_of("cdpruner", tokens), tokens.mask
        seen = required_context(
            "cdpruner", "image_embeds", embeds if image_embeds is None else image_embeds, *valid.shape, "C"
        )
        text = required_context("cdpruner", "text", text, len(valid), "T", seen.shape[2])
        if text_mask is not None:
            required_context("cdpruner", "text_mask", text_mask, *text.shape[:2])
        slots, counts = kept_tokens(tokens, budget)
        usable = valid & finite_tokens(embeds) & finite_tokens(seen)
        relevance = self.sign * text_cosine(seen, text, usable, text_mask)
        points = compared(embeds, usable, "cosine")
        picks = greedy_dpp(points, rescaled(relevance, usable), slots, usable)
        index = best_slots(pick_ranks(picks, valid), slots, counts)
        return as_selection(tokens, index, counts, budget)._replace(scores=relevance.float())


def text_cosine(seen: Tensor, text: Tensor, usable: Tensor, text_mask: Tensor | None = None) -> Tensor:
    """Mean cosine [B, N] of seen [B, N, C] and the text [B, T, C] that text_mask [B, T] counts; 0 if it counts none.

    Where a token is not usable [B, N] it is 0, too.
    """
    counted = finite_tokens(text) if text_mask is None else text_mask & finite_tokens(text)
    words = compared(text, counted, "cosine")
    # The mean of cosines is the cosine with the mean of unit vectors, up to its length.
    mean = words.double().sum(1) / counted.sum(1, keepdim=True).clamp(min=1)
    return (compared(seen, usable, "cosine").double() @ mean[:, :, None]).squeeze(2)


def rescaled(relevance: Tensor, valid: Tensor) -> Tensor:
    """q [B, N]: relevance [B, N] stretched to [0, 1] over the valid [B, N] of each item; 1 where it is all the same."""
    if not valid.shape[1]:
        return relevance
    least = relevance.masked_fill(~valid, torch.inf).amin(1, keepdim=True)
    span = relevance.masked_fill(~valid, -torch.inf).amax(1, keepdim=True) - least
    return torch.where(span > 0, (relevance - least + 1e-6) / span, 1)
