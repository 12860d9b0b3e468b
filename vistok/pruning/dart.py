"""DART: Stop Looking for Important Tokens in Multimodal Language Models: Duplication Matters More, arXiv:2502.11494.

Pivots: of the visual tokens the p_i, of the instruction the p_t with the largest |k|_1, k the rotated keys of 0-based
layer K - 1. Behind that layer visual pivots stay; then each pivot in turn, visual ones first, the largest first, takes
of the visual tokens that nobody took those with the least cos(h_pivot, h_v), h the hidden states. Positions are kept.
The rule is the authors'. Ours: exactly round(ratio N) tokens stay, pivots among them, whose remainder goes to the first
pivots (theirs: p_i + (p_i + p_t) floor(ratio N / (p_i + p_t))); pivots have an order (theirs come out of a Python set);
ties go to the lowest place. Theirs takes h through the decoder's final norm, which a pruner does not know.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from vistok.protocols import Budget, LayerCut, LayerPlan, LayerView
from vistok.pruning._layer_cuts import at_visual, cut_to, members, ranked
from vistok.pruning._schedule import check_ratios, kept_counts, kept_fractions
from vistok.registry import register
from vistok.rows import take_rows


@register
class Dart:
    """Keeps a few pivots and, behind one shallow layer, the visual tokens that duplicate them least."""

    cannot: frozenset[str] = frozenset()

    def __init__(
        self, *, layer: int | float = 2 / 32, ratio: float = 0.222, image_pivots: int = 4, text_pivots: int = 4
    ) -> None:
        """layer: whose keys name the pivots and behind which the cut is, by 0-based index or relative depth. ratio:
        what the cut leaves. Raises: ValueError naming a setting out of range."""
        if image_pivots < 1 or text_pivots < 0:
            raise ValueError(
                f"dart: expected image_pivots >= 1 and text_pivots >= 0, got {image_pivots} and {text_pivots}"
            )
        self.ratios = check_ratios("dart", [layer], [ratio])
        self.image_pivots = image_pivots
        self.text_pivots = text_pivots
        self.plan = LayerPlan(prune_after=(layer,), needs=frozenset({"attention"}), positions="keep")

    def begin(self, view: LayerView, budget: Budget | None = None) -> "Pivoting":
        """Start a prefill.

        budget: mean visual tokens per layer. Raises: ValueError for one that the layers before the cut exceed already.
        """
        fractions = kept_fractions("dart", self.plan.prune_after, self.ratios, view, budget)
        return Pivoting(fractions, self.image_pivots, self.text_pivots)


@dataclass(frozen=True, eq=False)
class Pivoting:
    """One prefill; it remembers nothing between layers. fractions: layer -> [B] float64 of the tokens to keep."""

    fractions: dict[int, Tensor]
    image_pivots: int
    text_pivots: int

    def observe(self, view: LayerView) -> None:
        """Nothing: keys and hidden states stand in the view of the cut's own layer."""

    def prune(self, view: LayerView) -> LayerCut:
        """Keep the visual pivots and what is least like any pivot."""
        assert view.attention is not None
        counts = kept_counts(self.fractions[view.layer], view.original).minimum(view.counts)
        sizes = view.attention.keys().float().abs().sum(3).mean(1)
        return cut_to(view, self._chosen(view, sizes, counts))

    def _chosen(self, view: LayerView, sizes: Tensor, counts: Tensor) -> Tensor:
        """[B, V] bool, counts [B] of a row; sizes [B, n]: L1 norm of the keys."""
        usable = members(view)
        directions = torch.nn.functional.normalize(view.hidden.float(), dim=2)
        visual = at_visual(directions, view)
        images = ranked(at_visual(sizes, view), usable)[:, : self.image_pivots]
        texts = ranked(sizes, view.instruction)[:, : self.text_pivots]
        takes_image = _first(images, counts)
        active = torch.cat([takes_image, _first(texts, view.instruction.sum(1))], 1)
        pivots = torch.cat([take_rows(visual, images), take_rows(directions, texts)], 1)
        likeness = pivots @ visual.transpose(1, 2)
        chosen = torch.zeros_like(usable).scatter(1, images, takes_image)
        quotas = _shared_out(counts - takes_image.sum(1), active)
        for pivot in range(pivots.shape[1]):
            order = ranked(-likeness[:, pivot], usable & ~chosen)
            chosen = chosen.scatter(1, order, _first(order, quotas[:, pivot]) | chosen.gather(1, order))
        return chosen


def _first(places: Tensor, counts: Tensor) -> Tensor:
    """[B, P] bool: the first counts [B] of every row of places [B, P]."""
    return torch.arange(places.shape[1], device=places.device) < counts[:, None]


def _shared_out(totals: Tensor, active: Tensor) -> Tensor:
    """[B, P] int64: totals [B] over the active [B, P] entries in equal parts, the first ones getting what is over."""
    parts = active.sum(1).clamp(min=1)
    extra = active.cumsum(1) <= (totals % parts)[:, None]
    return ((totals // parts)[:, None] + extra.to(torch.int64)).masked_fill(~active, 0)
