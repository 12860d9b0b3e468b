"""LLaVA-PruMerge: Adaptive Token Reduction for Efficient Large Multimodal Models, arXiv:2403.15388.

With a the class token's attention: the tokens of most attention stay, each as x_i + sum of a_j x_j over the 32 others,
kept or not, whose keys have the largest cosine with its own; one token more is the sum of a_j x_j over those pruned.
How many stay: the outliers, a above Q3 + 1.5 (Q3 - Q1) of the item (`outlier_counts`). PruMerge+ adds tokens sampled
evenly over the image, about three for each outlier: spread = 3/4. So far the authors' code.
Ours: a and keys are means over heads, where the code multiplies queries and keys of full width; a budget of k counts
the token of the pruned ones, which stands at the place of the most attended of them (a budget of 1 leaves it out, and
a budget of everything is the identity); PruMerge+ samples evenly among the tokens that are no outliers, where the
code's arithmetic sequence over all slots repeats some, so that it keeps as many as budgeted; ties go to the lowest
slot. As in the code, attention and keys are those of the last layer, the tokens LLaVA's, of the one before it.
"""

from typing import Any

import torch
from torch import Tensor

from vistok.ops.budget import as_selection, best_slots, kept_tokens
from vistok.ops.token_choice import finite_tokens
from vistok.ops.token_points import compared
from vistok.protocols import Budget
from vistok.pruning._context import refuse_context, required_context
from vistok.pruning._embeds import embeds_of
from vistok.pruning._ranks import score_ranks
from vistok.registry import register
from vistok.rows import take_rows
from vistok.tokens import Selection, TokenTensor


@register
class PruMerge:
    """Keeps what the tower attends to most, each with its surroundings added, and one token for what is pruned."""

    cannot: frozenset[str] = frozenset()
    needs: frozenset[str] = frozenset({"attention", "tower_keys"})
    space = "tower"

    def __init__(self, *, spread: float = 0.0, neighbours: int = 32, tower_layer: int = -1) -> None:
        """spread: share of the kept tokens that are sampled evenly over the image. neighbours: added to a kept token.

        tower_layer: of which attention and keys are. Raises: ValueError naming a setting out of range.
        """
        if not 0.0 <= spread < 1.0:
            raise ValueError(f"prumerge: expected spread in [0, 1), got {spread}")
        if neighbours < 0:
            raise ValueError(f"prumerge: expected neighbours >= 0, got {neighbours}")
        self.spread = spread
        self.neighbours = neighbours
        self.tower_layer = tower_layer

    @torch.no_grad()
    def select(self, tokens: TokenTensor, budget: Budget, **context: Any) -> Selection:
        """Slots [B, K] ascending: the places of what `reduce` leaves.

        attention [B, N], tower_keys [B, N, Dk]: as in vistok.protocols.Pruner. Raises: TypeError for other context;
        ValueError for a budget out of range, context missing or misshapen.
        """
        attention, _ = self._check(tokens, context)
        slots, counts = kept_tokens(tokens, budget)
        kept, extra = self._choose(tokens.mask, attention, counts)
        index = best_slots((~(kept | extra)).long() * tokens.num_slots, slots, counts)
        return as_selection(tokens, index, counts, budget)._replace(scores=attention.float())

    def reduce(self, tokens: TokenTensor, budget: Budget, **context: Any) -> TokenTensor:
        """The kept tokens with their neighbours added, and the sum of the pruned ones; other fields as of `select`.

        The latter has the `sizes` of all of them. Raises: as `select`; ValueError for tokens without embeds.
        """
        attention, keys = self._check(tokens, context)
        embeds, valid = embeds_of("prumerge", tokens), tokens.mask
        selection = self.select(tokens, budget, **context)
        _, counts = kept_tokens(tokens, budget)
        with torch.no_grad():
            kept, extra = self._choose(valid, attention, counts)
            last = extra.gather(1, selection.index)[..., None]
            added = nearest(keys, selection.index, valid, self.neighbours) & ~last
            added = (added | ((valid & ~kept)[:, None] & last)) & (counts < valid.sum(1))[:, None, None]
            share = attention.nan_to_num(0.0).masked_fill(~valid, 0)[:, None] * added
        x = embeds.to(torch.promote_types(embeds.dtype, torch.float32)).masked_fill(~valid[..., None], 0)
        values = take_rows(x, selection.index).masked_fill(last, 0) + share.to(x.dtype) @ x
        sizes = torch.ones_like(attention, dtype=torch.float32) if tokens.sizes is None else tokens.sizes
        pruned = sizes.masked_fill(~valid | kept, 0).sum(1, keepdim=True)
        sizes = torch.where(extra, pruned, sizes)
        return tokens.replace(sizes=sizes).select(selection).replace(embeds=values.to(embeds.dtype))

    def _check(self, tokens: TokenTensor, context: dict[str, Any]) -> tuple[Tensor, Tensor]:
        refuse_context("prumerge", context, self.needs)
        attention = required_context("prumerge", "attention", context.get("attention"), *tokens.mask.shape)
        keys = required_context("prumerge", "tower_keys", context.get("tower_keys"), *tokens.mask.shape, "Dk")
        return attention, keys

    def _choose(self, valid: Tensor, attention: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens that are kept, and the one at whose place the pruned ones are summed up: [B, N] bool each."""
        everything = counts >= valid.sum(1)
        sums_up = (counts > 1) & ~everything
        places = counts - sums_up.long()
        sampled = (places.double() * self.spread).round().long().minimum(places - 1).clamp(min=0)
        sampled = sampled.masked_fill(everything, 0)
        kept = valid & (score_ranks(attention, valid) < (places - sampled)[:, None])
        kept = kept | evenly(valid & ~kept, sampled)
        pruned = valid & ~kept
        return kept, pruned & (score_ranks(attention, pruned) == 0) & sums_up[:, None]


def evenly(rest: Tensor, counts: Tensor) -> Tensor:
    """True [B, N] at `counts` [B] of the R slots where rest [B, N] is True: those at floor((i + 1/2) R / counts)."""
    total, place = rest.sum(1, keepdim=True).clamp(min=1), rest.cumsum(1)
    # How many of them lie before a place is counted in integers, and rises where one is taken.
    before = (2 * counts[:, None] * torch.stack([place - 1, place]) + total - 1) // (2 * total)
    return rest & (before[1] > before[0])


def nearest(keys: Tensor, index: Tensor, valid: Tensor, count: int) -> Tensor:
    """True [B, K, N] at the `count` slots of largest cosine of keys [B, N, Dk] to those of index [B, K], itself not."""
    usable = valid & finite_tokens(keys)
    points = compared(keys, usable, "cosine").double()
    # Rounded from float64, equal keys are equally near.
    cosines = (take_rows(points, index) @ points.mT).float()
    slot = torch.arange(valid.shape[1], device=valid.device)
    others = usable[:, None] & (slot != index[..., None])
    order = cosines.masked_fill(~others, -torch.inf).sort(dim=2, descending=True, stable=True).indices
    return others & torch.zeros_like(others).scatter(2, order[..., :count], True)


def outlier_counts(attention: Tensor, valid: Tensor, spread: float = 0.0) -> Tensor:
    """Budget [B] int64 that keeps the outliers of attention [B, N]: as many, and one for the sum of the pruned tokens.

    valid: [B, N] bool. spread: share of kept tokens that are sampled, as of the pruner; 3/4 of them make it four times
    the outliers. Quartiles are interpolated between ranks; at least 1 where an item has tokens.
    """
    if not valid.shape[1]:
        return valid.sum(1)
    count = valid.sum(1, keepdim=True)
    values = attention.double().nan_to_num(0.0)
    ordered = values.masked_fill(~valid, torch.inf).sort(1).values
    first, third = (_between(ordered, (count - 1).clamp(min=0) * quarter / 4) for quarter in (1, 3))
    outliers = (valid & (values > third + 1.5 * (third - first))).sum(1)
    return ((outliers / (1 - spread)).round().long() + 1).minimum(count[:, 0])


def _between(ordered: Tensor, place: Tensor) -> Tensor:
    """Values [B, 1] of ordered [B, N] at fractional places [B, 1]."""
    low, high = (ordered.gather(1, side.long()) for side in (place.floor(), place.ceil()))
    return low + (place - place.floor()) * (high - low)
