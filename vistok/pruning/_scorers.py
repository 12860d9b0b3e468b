"""How much a token is worth by itself: [B, N] float32 in 0..1, the best of an item 1. B items, N token slots, D width.

"even": all alike. "distinct": 1 - cos(x, mean direction), from 0 for the least distinct. "norm": length. "text": the
mean cosine with the words of the instruction. "attention", "instruction_attention": as the host gives them.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vistok.ops.token_points import compared, products
from vistok.pruning.cdpruner import text_cosine


class Scorer(NamedTuple):
    """needs: context that it takes; score: (embeds [B, N, D], usable [B, N], context) -> [B, N], before scaling."""

    needs: frozenset[str]
    score: Callable[[Tensor, Tensor, dict[str, Any]], Tensor]


def quality(scorer: str, embeds: Tensor, usable: Tensor, context: dict[str, Any]) -> Tensor:
    """Scores [B, N] of one of SCORERS, in 0..1; 0 where a token is not usable [B, N] or its score is no number."""
    if not usable.shape[1]:
        return usable.float()
    values = SCORERS[scorer].score(embeds, usable, context).float()
    usable = usable & values.isfinite()
    values = values.masked_fill(~usable, 0)
    if scorer in _SIGNED:
        least = values.masked_fill(~usable, torch.inf).amin(1, keepdim=True)
        values = (values - least).masked_fill(~usable, 0)
    top = values.amax(1, keepdim=True)
    # Where all are alike, none is worth more than another.
    return torch.where(top > 0, values / top.where(top > 0, 1), usable.float())


def _even(embeds: Tensor, usable: Tensor, context: dict[str, Any]) -> Tensor:
    return usable.float()


def _distinct(embeds: Tensor, usable: Tensor, context: dict[str, Any]) -> Tensor:
    points = compared(embeds, usable, "cosine")
    return -products(points, points.double().sum(1).to(points.dtype))


def _norm(embeds: Tensor, usable: Tensor, context: dict[str, Any]) -> Tensor:
    norms: Tensor = torch.linalg.vector_norm(compared(embeds, usable, "l2"), dim=2)
    return norms


def _text(embeds: Tensor, usable: Tensor, context: dict[str, Any]) -> Tensor:
    return text_cosine(embeds, context["text"], usable, context.get("text_mask"))


def _given(name: str) -> Scorer:
    return Scorer(frozenset({name}), lambda embeds, usable, context: context[name])


SCORERS = {
    "even": Scorer(frozenset(), _even),
    "distinct": Scorer(frozenset(), _distinct),
    "norm": Scorer(frozenset(), _norm),
    "text": Scorer(frozenset({"text", "text_mask"}), _text),
    "attention": _given("attention"),
    "instruction_attention": _given("instruction_attention"),
}
_SIGNED = frozenset({"distinct", "text"})
