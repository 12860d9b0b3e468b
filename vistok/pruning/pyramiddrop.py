"""PyramidDrop: Accelerating Your Large Vision-Language Models via Pyramid Visual Redundancy Reduction.

arXiv:2410.17247. The decoder's layers form four stages of equal length. Behind stage s = 1, 2, 3, floor(2^-s N0) of
the N0 visual tokens stay: those with the highest mean over heads of A[t, i], A the softmax attention of the NEXT layer
at the current tokens, t the last token of the instruction. Positions are counted anew.
The rule is the authors'. Ours: stages end at relative depths, the authors' in a decoder of 32 layers; at least one
token stays; ties go to the lowest place; the images of an item share one pool.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from vistok.protocols import Budget, LayerCut, LayerPlan, LayerView
from vistok.pruning._layer_cuts import at_visual, cut_to, highest, last_token, members
from vistok.pruning._schedule import check_ratios, kept_counts, kept_fractions
from vistok.registry import register


@register
class PyramidDrop:
    """Drops part of the visual tokens at the end of each stage of layers, by the attention of the instruction's end."""

    cannot: frozenset[str] = frozenset()

    def __init__(
        self,
        *,
        prune_after: Sequence[int | float] = (0.25, 0.5, 0.75),
        ratios: Sequence[float] = (0.5, 0.25, 0.125),
    ) -> None:
        """prune_after: last layer of each stage but the last, by 0-based index or relative depth. ratios: what each
        cut leaves of the original tokens, falling. Raises: ValueError naming the setting."""
        self.ratios = check_ratios("pyramiddrop", prune_after, ratios)
        self.plan = LayerPlan(prune_after=tuple(prune_after), needs=frozenset({"next_attention"}), positions="reindex")

    def begin(self, view: LayerView, budget: Budget | None = None) -> "Pyramid":
        """Start a prefill.

        budget: mean visual tokens per layer, reached by scaling all ratios alike. Raises: ValueError for one that the
        layers before the first cut exceed already.
        """
        return Pyramid(kept_fractions("pyramiddrop", self.plan.prune_after, self.ratios, view, budget))


@dataclass(frozen=True, eq=False)
class Pyramid:
    """One prefill; it remembers nothing between layers. fractions: layer -> [B] float64 of the tokens to keep."""

    fractions: dict[int, Tensor]

    def observe(self, view: LayerView) -> None:
        """Nothing: the attention stands in the view of a cut's own layer."""

    def prune(self, view: LayerView) -> LayerCut:
        """Keep the visual tokens that the instruction's last token looks at most in the layer to come."""
        assert view.next_attention is not None
        scores = at_visual(view.next_attention(last_token(view)), view)
        counts = kept_counts(self.fractions[view.layer], view.original, down=True)
        return cut_to(view, highest(scores, members(view), counts), scores)
