"""DivPrune: Diversity-based Visual Token Pruning for Large Multimodal Models, arXiv:2503.02175.

Max-min diversity with d(i, j) = 1 - cos(x_i, x_j) over the projected tokens, greedily: the first token is
argmax_i min_{j != i} d(i, j), the one farthest from its nearest neighbour; the next one argmax_i min over the taken
ones of d(i, j), again and again. The picks and their order are those of the authors' code; they are put back into
their order in the image.
Ours: ties go to the lowest slot (two tokens nearest to each other always tie for the first place, and the code leaves
it to rounding which one wins); tokens with NaN or infinity are taken last, from the front.
"""

from typing import Any

import torch
from torch import Tensor

from vistok.ops.budget import as_selection, best_slots, kept_tokens
from vistok.ops.k_center import k_center
from vistok.ops.token_choice import finite_tokens, first_largest
from vistok.ops.token_points import compared
from vistok.protocols import Budget
from vistok.pruning._context import refuse_context
from vistok.pruning._embeds import embeds_of
from vistok.pruning._picks import pick_ranks
from vistok.registry import register
from vistok.tokens import Selection, TokenTensor

_COMPARED = 1 << 24  # cosines held at once


@register
class DivPrune:
    """Keeps tokens of which no two are alike."""

    cannot: frozenset[str] = frozenset()
    needs: frozenset[str] = frozenset()

    @torch.no_grad()
    def select(self, tokens: TokenTensor, budget: Budget, **context: Any) -> Selection:
        """Slots [B, K] ascending.

        Raises: TypeError for any context, ValueError for a budget out of range or tokens without embeds.
        """
        refuse_context("divprune", context, self.needs)
        embeds, valid = embeds_of("divprune", tokens), tokens.mask
        slots, counts = kept_tokens(tokens, budget)
        picks = k_center(embeds, slots, "cosine", start=loneliest(embeds, valid), valid=valid).indices
        return as_selection(tokens, best_slots(pick_ranks(picks, valid), slots, counts), counts, budget)


def loneliest(embeds: Tensor, valid: Tensor) -> Tensor:
    """Slot [B] int64 of the token of embeds [B, N, D] whose largest cosine to another one is the smallest.

    Among valid [B, N] bool tokens without NaN and infinity; the lowest slot of equals, 0 if there is none.
    """
    usable = valid & finite_tokens(embeds)
    if not valid.shape[1]:
        return first_largest(usable.float(), usable)
    # Rounded from float64, cos(i, j) is cos(j, i) to the bit: of two nearest neighbours the lower slot wins.
    points = compared(embeds, usable, "cosine").double()
    slot = torch.arange(points.shape[1], device=points.device)
    rows = max(1, _COMPARED // max(1, usable.numel()))
    nearest = [
        (points[:, part] @ points.mT)
        .float()
        .masked_fill(~usable[:, None] | (part[:, None] == slot), -torch.inf)
        .amax(2)
        for part in slot.split(rows)
    ]
    return first_largest(-torch.cat(nearest, 1), usable)
