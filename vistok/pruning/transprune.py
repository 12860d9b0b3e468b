"""TransPrune: Token Transition Pruning for Efficient Large Vision-Language Model, arXiv:2507.20630.

TTV_i = w_i |out_i| / |in_i| of attention plus that of the FFN, added up over the observed layers (w:
vistok.ops.transition_score). IGA_i = mean over heads and instruction rows of the next layer's attention on token i.
score = 2 (alpha TTV / sum TTV + (1 - alpha) IGA / sum IGA), sums over the visual tokens that are left; behind a cut
floor(ratio N0) of the N0 visual tokens at the decoder's input stay, ties to the lowest place.
variant "code" is the authors' program, "paper" the text. Theirs sums the weights over the whole batch, and takes one
image of one item; here items are apart, and the images of an item share one pool (scope "sample") or have their own.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from vistok.ops import transition_score, transition_stats
from vistok.ops.transition_score import VARIANTS
from vistok.protocols import Budget, LayerCut, LayerPlan, LayerView
from vistok.pruning._schedule import check_ratios, kept_fractions
from vistok.registry import register

SCOPES = ("sample", "image")
_TINY = 1e-8


@register
class TransPrune:
    """Drops visual tokens in steps between decoder layers: those that layers change little and the text ignores."""

    cannot: frozenset[str] = frozenset()

    def __init__(
        self,
        *,
        observe: Sequence[int | float] = (6, 7, 8, 9, 10, 11),
        prune_after: Sequence[int | float] = (6, 8, 11),
        ratios: Sequence[float] = (0.875, 0.625, 0.125),
        alpha: float = 0.5,
        variant: str = "code",
        scope: str = "sample",
        positions: Literal["keep", "reindex"] = "reindex",
    ) -> None:
        """observe, prune_after: layers by 0-based index or relative depth (the paper's 7..12 and 7, 9, 12 count from
        1). ratios: what each cut leaves of the original tokens, falling. alpha: weight of TTV against IGA.

        positions: "reindex" as the authors do where positions have one axis. Raises: ValueError naming the setting.
        """
        if variant not in VARIANTS:
            raise ValueError(f"transprune: expected variant to be one of {VARIANTS}, got {variant!r}")
        if scope not in SCOPES:
            raise ValueError(f"transprune: expected scope to be one of {SCOPES}, got {scope!r}")
        if not 0.0 <= alpha <= 1.0:
            raise ValueError(f"transprune: expected alpha in [0, 1], got {alpha}")
        self.ratios = check_ratios("transprune", prune_after, ratios)
        self.alpha = alpha
        self.variant = variant
        self.scope = scope
        self.plan = LayerPlan(tuple(observe), tuple(prune_after), frozenset({"next_attention"}), positions)

    def begin(self, view: LayerView, budget: Budget | None = None) -> "Accumulation":
        """Start a prefill.

        budget: mean visual tokens per layer, reached by scaling all ratios alike. Raises: ValueError for one that the
        layers before the first cut exceed already.
        """
        pools = torch.where(view.visual, view.image_ids if self.scope == "image" else 0, -1)
        ratios = kept_fractions("transprune", self.plan.prune_after, self.ratios, view, budget)
        return Accumulation(self.alpha, self.variant, ratios, pools, torch.zeros(pools.shape, device=pools.device))


@dataclass(frozen=True, eq=False)
class Accumulation:
    """One prefill. ratios: layer -> [B] float64; pools [B, n0] int64: which visual tokens compete, -1 elsewhere; total
    [B, n0]: TTV so far. n0 tokens at the decoder's input; V current visual tokens, P pools."""

    alpha: float
    variant: str
    ratios: dict[int, Tensor]
    pools: Tensor
    total: Tensor

    def observe(self, view: LayerView) -> None:
        """Add the transition scores of one layer."""
        assert view.transition is not None
        inside, outside, ffn_in, ffn_out = view.transition
        over = view.valid if self.variant == "code" else view.visual
        for before, after in ((inside, outside), (ffn_in, ffn_out)):
            score = transition_score(transition_stats(before, after), over, variant=self.variant)
            self.total.scatter_add_(1, view.source, score.to(self.total))

    def prune(self, view: LayerView) -> LayerCut:
        """Keep floor(ratio N0) visual tokens of every pool."""
        assert view.next_attention is not None
        members = torch.arange(view.slots.shape[1], device=view.slots.device) < view.counts[:, None]
        places = view.source.gather(1, view.slots)
        pools = self.pools.gather(1, places).masked_fill(~members, -1)
        changed = self.total.gather(1, places)
        attended = view.next_attention(view.instruction).to(changed).gather(1, view.slots)
        scores = 2 * (self.alpha * _normalised(changed, pools) + (1 - self.alpha) * _normalised(attended, pools))
        width = 1 + int(self.pools.max()) if self.pools.numel() else 0
        quota = (_tally(self.pools, width).double() * self.ratios[view.layer][:, None]).floor().to(torch.int64)
        chosen = _rank_in_pool(scores, pools) < quota.gather(1, pools + 1)
        lengths = chosen.sum(1)
        index = (~chosen).to(torch.int8).sort(dim=1, stable=True).indices[:, : int(lengths.max())]
        return LayerCut(index, lengths, scores.masked_fill(~members, 0))


def _tally(pools: Tensor, width: int) -> Tensor:
    """[B, P + 1] int64: members of pool p at p + 1; those of no pool do not count."""
    counts = torch.zeros(len(pools), width + 1, dtype=torch.int64, device=pools.device)
    return counts.scatter_add(1, pools + 1, (pools >= 0).to(torch.int64))


def _normalised(values: Tensor, pools: Tensor) -> Tensor:
    """values [B, V] over the sum of their pool, 0 outside of pools."""
    values = values.where(pools >= 0, 0)
    width = 2 + int(pools.max()) if pools.numel() else 1
    sums = values.new_zeros(len(values), width).scatter_add(1, pools + 1, values)
    return values / (sums.gather(1, pools + 1) + _TINY)


def _rank_in_pool(scores: Tensor, pools: Tensor) -> Tensor:
    """[B, V] int64: 0 for the highest score of a pool; of equal ones the lowest place first, NaN last."""
    order = scores.masked_fill(scores.isnan(), -torch.inf).sort(dim=1, descending=True, stable=True).indices
    order = order.gather(1, pools.gather(1, order).sort(dim=1, stable=True).indices)
    sorted_pools = pools.gather(1, order)
    steps = torch.arange(scores.shape[1], device=scores.device).expand_as(order)
    begins = torch.searchsorted(sorted_pools, sorted_pools)
    return torch.empty_like(order).scatter(1, order, steps - begins)
