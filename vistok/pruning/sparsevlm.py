"""SparseVLM: Visual Token Sparsification for Efficient Vision-Language Model Inference, arXiv:2410.04417 (v1.5 code).

Raters, chosen once at the decoder's input: the instruction's tokens t with mean over v of softmax_t(h_v . h_t) above
the mean over t. Behind 0-based layers 2, 6 and 15 of 32 the 300, 200 and 110 (of 576) visual tokens stay to which the
raters' rows of that layer's attention, averaged over heads and raters, give most. Of n dropped tokens the floor(0.3 n)
+ 1 best ones, m, are recycled: they fall into floor(m / 10) + 1 clusters (vistok.pruning._density_peaks), and each
cluster's mean stays as one more token. Positions are counted anew.
The rule is the authors'. Ours: a recycled token stands where its cluster's centre stood, theirs stand behind all kept
ones; layers are relative depths and counts fractions; a schedule that asks for no fewer tokens than there are drops
none, where theirs drops one; where no token is above the mean, all of the instruction rate, and where there is none,
the prompt's last token; under a budget recycled tokens count, so that it is met; ties go to the lowest place.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vistok.protocols import Budget, LayerCut, LayerPlan, LayerView
from vistok.pruning._density_peaks import density_peaks
from vistok.pruning._layer_cuts import at_visual, cut_to, highest, last_token, members
from vistok.pruning._schedule import check_ratios, kept_counts, kept_fractions
from vistok.registry import register
from vistok.rows import scatter_rows, take_rows


@register
class SparseVLM:
    """Drops the visual tokens that the words about the image rate lowest, and recycles the better ones merged."""

    cannot: frozenset[str] = frozenset()

    def __init__(
        self,
        *,
        prune_after: Sequence[int | float] = (3 / 32, 7 / 32, 16 / 32),
        counts: Sequence[int] = (300, 200, 110),
        of: int = 576,
        recycle: bool = True,
    ) -> None:
        """prune_after: layers by 0-based index or relative depth. counts: tokens that each cut leaves where there are
        `of`, falling; recycled ones come on top. Raises: ValueError naming the setting."""
        if of < 1:
            raise ValueError(f"sparsevlm: expected counts of at least 1 token, got of={of}")
        self.ratios = check_ratios("sparsevlm", prune_after, [count / of for count in counts])
        self.recycle = recycle
        self.plan = LayerPlan(prune_after=tuple(prune_after), needs=frozenset({"attention"}), positions="reindex")

    def begin(self, view: LayerView, budget: Budget | None = None) -> "Rating":
        """Start a prefill: choose the raters.

        budget: mean visual tokens per layer, recycled ones among them, reached by scaling all counts alike. Raises:
        ValueError for one that the layers before the first cut exceed already.
        """
        fractions = kept_fractions("sparsevlm", self.plan.prune_after, self.ratios, view, budget)
        return Rating(fractions, raters(view), self.recycle, within=budget is not None)


@dataclass(frozen=True, eq=False)
class Rating:
    """One prefill. fractions: layer -> [B] float64 of the tokens to keep; raters [B, n0] bool over the n0 tokens at the
    decoder's input; within: whether recycled tokens count among those to keep."""

    fractions: dict[int, Tensor]
    raters: Tensor
    recycle: bool
    within: bool

    def observe(self, view: LayerView) -> None:
        """Nothing: what a cut needs stands in the view of its own layer."""

    def prune(self, view: LayerView) -> LayerCut:
        """Keep the visual tokens that the raters look at most, and means of the best others."""
        assert view.attention is not None
        rows = self.raters.gather(1, view.source) & view.valid
        rows = rows | (last_token(view) & ~rows.any(1, keepdim=True))
        scores = at_visual(view.attention(rows), view)
        wanted = kept_counts(self.fractions[view.layer], view.original).minimum(view.counts)
        if not self.recycle:
            return cut_to(view, highest(scores, members(view), wanted), scores)
        kept = _beside_recycled(wanted, view.counts) if self.within else wanted
        dropped = view.counts - kept
        clusters = (wanted - kept if self.within else _clusters(dropped)).where(wanted > 0, 0)
        chosen = highest(scores, members(view), kept)
        pool = highest(scores, members(view) & ~chosen, _pooled(dropped))
        centres, embeds = _merged(at_visual(view.hidden, view), pool, clusters)
        return cut_to(view, chosen | centres, scores, embeds)


def raters(view: LayerView) -> Tensor:
    """[B, n] bool: the text tokens that visual tokens are nearest to at the decoder's input; all if none is."""
    order = view.instruction.to(torch.int8).sort(dim=1, descending=True, stable=True).indices
    order = order[:, : int(view.instruction.sum(1).max()) if len(order) else 0]
    asked = view.instruction.gather(1, order)
    products = at_visual(view.hidden, view).float() @ take_rows(view.hidden, order).float().transpose(1, 2)
    shares = products.masked_fill(~asked[:, None], -torch.inf).softmax(2).where(members(view)[..., None], 0)
    means = shares.sum(1) / view.counts.clamp(min=1)[:, None]
    threshold = means.where(asked, 0).sum(1, keepdim=True) / asked.sum(1, keepdim=True).clamp(min=1)
    chosen = torch.zeros_like(view.valid).scatter(1, order, asked & (means > threshold))
    return chosen | (view.instruction & ~chosen.any(1, keepdim=True))


def _pooled(dropped: Tensor) -> Tensor:
    """How many of so many dropped tokens are recycled."""
    return (3 * dropped // 10 + 1).minimum(dropped).clamp(min=0)


def _clusters(dropped: Tensor) -> Tensor:
    """How many tokens these become."""
    return (_pooled(dropped) // 10 + 1).where(dropped > 0, 0)


def _beside_recycled(wanted: Tensor, counts: Tensor) -> Tensor:
    """[B] int64: how many of counts [B] to keep so that they and the recycled ones are wanted [B]; 1 at least."""
    steps = torch.arange(int(counts.max()) + 1 if len(counts) else 0, device=counts.device)
    # A kept token more is at most a cluster less, so the sum rises with the steps and reaches every number on its way.
    fits = steps + _clusters(counts[:, None] - steps) <= wanted[:, None]
    return (fits.sum(1) - 1).clamp(min=1).minimum(wanted)


def _merged(values: Tensor, pool: Tensor, clusters: Tensor) -> tuple[Tensor, Tensor]:
    """Where clusters [B] of the pool [B, V] have their centres, [B, V] bool, and values [B, V, D] with means there."""
    width = int(pool.sum(1).max()) if len(pool) else 0
    if not width:
        return pool, values
    order = (~pool).to(torch.int8).sort(dim=1, stable=True).indices[:, :width]
    points = take_rows(values, order).float()
    owner = density_peaks(points, pool.gather(1, order), clusters)
    means = scatter_rows(points, owner.where(owner >= 0, width), width, "mean")
    centre = owner == torch.arange(width, device=owner.device)
    centres = torch.zeros_like(pool).scatter(1, order, centre)
    placed = torch.zeros_like(values).scatter(1, order[..., None].expand_as(points), means.to(values.dtype))
    return centres, torch.where(centres[..., None], placed, values)
