"""FastV: An Image is Worth 1/2 Tokens After Layer 2: Plug-and-Play Inference Acceleration for LVLMs, arXiv:2403.06764.

score_i = mean over heads of A[t, i], A the softmax attention of 0-based layer K - 1, t the last token of the prompt.
Behind that layer the (1 - R) N best of the N visual tokens stay, and keep their positions; K = 2, R = 0.5.
The rule is the authors'. Ours: the layer is a relative depth that is theirs in a decoder of 32 layers; (1 - R) N is
rounded to the nearest number, at least 1; ties go to the lowest place; the images of an item share one pool. Theirs
reads the last row of the batch's tensor, which in a padded batch may be padding; here it is each item's last token.
"""

from dataclasses import dataclass

from torch import Tensor

from vistok.protocols import Budget, LayerCut, LayerPlan, LayerView
from vistok.pruning._layer_cuts import at_visual, cut_to, highest, last_token, members
from vistok.pruning._schedule import check_ratios, kept_counts, kept_fractions
from vistok.registry import register


@register
class FastV:
    """Drops, behind one shallow layer, the visual tokens that the last token of the prompt looks at least."""

    cannot: frozenset[str] = frozenset()

    def __init__(self, *, layer: int | float = 2 / 32, ratio: float = 0.5) -> None:
        """layer: whose attention decides and behind which the cut is, by 0-based index or relative depth. ratio: what
        the cut leaves, the paper's 1 - R. Raises: ValueError for a ratio outside of [0, 1]."""
        self.ratios = check_ratios("fastv", [layer], [ratio])
        self.plan = LayerPlan(prune_after=(layer,), needs=frozenset({"attention"}), positions="keep")

    def begin(self, view: LayerView, budget: Budget | None = None) -> "LastRow":
        """Start a prefill.

        budget: mean visual tokens per layer. Raises: ValueError for one that the layers before the cut exceed already.
        """
        return LastRow(kept_fractions("fastv", self.plan.prune_after, self.ratios, view, budget))


@dataclass(frozen=True, eq=False)
class LastRow:
    """One prefill; it remembers nothing between layers. fractions: layer -> [B] float64 of the tokens to keep."""

    fractions: dict[int, Tensor]

    def observe(self, view: LayerView) -> None:
        """Nothing: the attention stands in the view of the cut's own layer."""

    def prune(self, view: LayerView) -> LayerCut:
        """Keep the visual tokens that the last token looks at most."""
        assert view.attention is not None
        scores = at_visual(view.attention(last_token(view)), view)
        counts = kept_counts(self.fractions[view.layer], view.original)
        return cut_to(view, highest(scores, members(view), counts), scores)
