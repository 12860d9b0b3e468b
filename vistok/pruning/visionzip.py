"""VisionZip: Longer is Better but Not Necessary in Vision Language Models, arXiv:2412.04467.

Of a budget of k tokens, c = round(contextual * k) are contextual and the others dominant. Dominant: the class token
itself and the patches it attends to most, in the tower's second-last layer. Of the R other patches, those at places
0, s, 2s, ..., s = max(1, R // c), are targets, c of them; each remaining one joins the target whose key (mean over
heads) has the largest cosine with its own, and a target becomes x + mean of those that joined it. This is the authors'
code, whose order of the result (class token, dominant, contextual) `contextual_tokens` lets one restore.
The budget counts the class token; the code's 54 + 10, 108 + 20 and 162 + 30 tokens are contextual = 10 / 64.
Ours: tokens stand in the order of their places, a target at its own and the class token at the lowest one that nothing
else holds; without a class token all dominant ones are patches; the mean is weighted by `sizes` where tokens were
merged before; a budget of everything is the identity, without class token; ties go to the lowest slot.
"""

from typing import Any

import torch
from torch import Tensor

from vistok.ops.budget import as_selection, best_slots, kept_tokens
from vistok.ops.merge import merge
from vistok.ops.token_choice import finite_tokens
from vistok.ops.token_points import compared
from vistok.protocols import Budget
from vistok.pruning._context import refuse_context, required_context
from vistok.pruning._embeds import embeds_of
from vistok.pruning._ranks import score_ranks
from vistok.registry import register
from vistok.rows import take_rows
from vistok.tokens import Assignment, Selection, TokenTensor


@register
class VisionZip:
    """Keeps what the tower attends to most, and merges the rest into a few tokens."""

    cannot: frozenset[str] = frozenset()
    needs: frozenset[str] = frozenset({"attention", "tower_keys", "class_token"})
    tower_layer = -2
    space = "tower"

    def __init__(self, *, contextual: float = 10 / 64) -> None:
        """contextual: share of the budget that merged tokens take. Raises: ValueError unless it is in [0, 1)."""
        if not 0.0 <= contextual < 1.0:
            raise ValueError(f"visionzip: expected contextual in [0, 1), got {contextual}")
        self.contextual = contextual

    @torch.no_grad()
    def select(self, tokens: TokenTensor, budget: Budget, **context: Any) -> Selection:
        """Slots [B, K] ascending: dominant patches and contextual targets; no class token, which is no slot.

        attention [B, N], tower_keys [B, N, Dk], class_token [B, 1, D] or None: as in vistok.protocols.Pruner.
        Raises: TypeError for other context; ValueError for a budget out of range, context missing or misshapen.
        """
        attention, keys, _ = self._check(tokens, context)
        _, counts = kept_tokens(tokens, budget)
        dominant, target = self._choose(tokens.mask, attention, counts, counts)
        return _at(tokens, dominant | target, budget, attention)

    def reduce(self, tokens: TokenTensor, budget: Budget, **context: Any) -> TokenTensor:
        """Dominant tokens as they are, the class token among them, and contextual ones with what joined them.

        Other fields are those of the token at the place. Raises: as `select`; ValueError for tokens without embeds.
        """
        attention, keys, class_token = self._check(tokens, context)
        embeds, valid = embeds_of("visionzip", tokens), tokens.mask
        slots, counts = kept_tokens(tokens, budget)
        with torch.no_grad():
            led = (counts > 0) & (counts < valid.sum(1)) & (class_token is not None)
            dominant, target = self._choose(valid, attention, counts, counts - led.long())
            free = valid & ~dominant & ~target & led[:, None]
            first = free & (free.cumsum(1) == 1)
            most = min(self._contextual(slots), slots)
            rest = valid & ~dominant
            assignment = join(keys, rest, target, most)
        values, sizes = contextual_tokens(embeds, target, assignment, tokens.sizes)
        if class_token is not None:
            values = torch.where(first[..., None], class_token.to(values.dtype), values)
            sizes = sizes.masked_fill(first, 1)
        selection = _at(tokens, dominant | target | first, budget, attention)
        return tokens.replace(embeds=values, sizes=sizes).select(selection)

    def _check(self, tokens: TokenTensor, context: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor | None]:
        refuse_context("visionzip", context, self.needs)
        shape = tokens.mask.shape
        attention = required_context("visionzip", "attention", context.get("attention"), *shape)
        keys = required_context("visionzip", "tower_keys", context.get("tower_keys"), *shape, "Dk")
        class_token = context.get("class_token")
        if class_token is not None and tokens.embeds is not None:
            required_context("visionzip", "class_token", class_token, shape[0], 1, tokens.embeds.shape[2])
        return attention, keys, class_token

    def _contextual(self, count: int) -> int:
        return max(0, min(round(count * self.contextual), count - 1))

    def _choose(self, valid: Tensor, attention: Tensor, counts: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
        """Dominant patches and targets, [B, N] bool: `places` [B] of them together, of a budget of counts [B]."""
        merged = (counts.double() * self.contextual).round().long().minimum(counts - 1).clamp(min=0)
        merged = merged.masked_fill(counts >= valid.sum(1), 0)
        dominant = valid & (score_ranks(attention, valid) < (places - merged)[:, None])
        return dominant, strided(valid & ~dominant, merged)


def strided(rest: Tensor, counts: Tensor) -> Tensor:
    """True [B, N] at `counts` [B] of the R slots of an item where rest [B, N] is True: every max(1, R // counts)-th."""
    step = (rest.sum(1) // counts.clamp(min=1)).clamp(min=1)[:, None]
    place = rest.cumsum(1) - 1
    return rest & (place % step == 0) & (place // step < counts[:, None])


def join(keys: Tensor, rest: Tensor, target: Tensor, most: int) -> Assignment:
    """To the slot of which target [B, N] each other token of rest [B, N] goes, by keys [B, N, Dk]; -1 for what stays.

    most: no item has more targets.
    """
    slots = rest.shape[1]
    others = Assignment(torch.full_like(rest, -1, dtype=torch.int64), slots)
    if not most or not slots:
        return others
    where = best_slots((~target).long() * slots, most, target.sum(1))
    points = compared(keys, rest & finite_tokens(keys), "cosine").double()
    # Rounded from float64, targets of equal keys are equally near.
    cosines = (points @ take_rows(points, where).mT).float()
    real = torch.arange(most, device=rest.device) < target.sum(1, keepdim=True)
    nearest = _first_largest_column(cosines.masked_fill(~real[:, None], -torch.inf))
    joins = rest & ~target & real.any(1, keepdim=True)
    return others._replace(slot=where.gather(1, nearest).where(joins, -1))


def _first_largest_column(values: Tensor) -> Tensor:
    """[B, N] int64, the lowest among equals of values [B, N, M]: argmax promises no order on GPUs."""
    column = torch.arange(values.shape[2], device=values.device)
    return torch.where(values == values.amax(2, keepdim=True), column, values.shape[2] - 1).amin(2)


def contextual_tokens(
    embeds: Tensor, target: Tensor, assignment: Assignment, sizes: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """embeds [B, N, D] where each target [B, N] has the mean of those assigned to its slot added, and sizes [B, N]."""
    own = torch.ones_like(target, dtype=torch.float32) if sizes is None else sizes
    joined = merge(embeds, assignment, own)
    return torch.where(target[..., None], embeds + joined.values, embeds), own + joined.sizes.to(own.dtype)


def _at(tokens: TokenTensor, held: Tensor, budget: Budget, scores: Tensor) -> Selection:
    """The selection of the places held [B, N], of which there are as many as budgeted."""
    slots, counts = kept_tokens(tokens, budget)
    index = best_slots((~held).long() * tokens.num_slots, slots, counts)
    return as_selection(tokens, index, counts, budget)._replace(scores=scores.float())
