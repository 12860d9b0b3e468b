"""ToDRE: Effective Visual Token Pruning via Token Diversity and Task Relevance, arXiv:2505.18757.

Stage 1, at the decoder's input: C = {p}, p = argmax of the CLS attention; then c = argmin_v sum over u in C of
cos(x_v, x_u), again and again (v2, "max_sum"), or c = argmax_v min over u in C of 1 - cos(x_v, x_u) (v1, "k_center").
Stage 2, behind a decoder layer: with A the mean over heads of its attention, a_tv = the share of text rows on visual
columns, a_vt = that of visual rows on text columns; if both are below tau, all visual tokens go.
No code of the authors is public. The picks are put back into their order. What the paper leaves open: ties go to the
lowest slot, the relative depth 7/8 is rounded down to a layer, and text keeps its positions.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vistok.ops.budget import as_selection, best_slots, kept_tokens
from vistok.ops.k_center import k_center
from vistok.ops.max_sum import max_sum
from vistok.ops.token_choice import finite_tokens, first_largest
from vistok.ops.token_points import compared, distance_to_mean
from vistok.protocols import Budget, LayerCut, LayerPlan, LayerView
from vistok.pruning._context import refuse_context
from vistok.pruning._embeds import embeds_of
from vistok.pruning._picks import pick_ranks
from vistok.registry import register
from vistok.tokens import Selection, TokenTensor

DIVERSITIES = ("max_sum", "k_center")
# Each pivot and the context that it takes.
PIVOTS: dict[str, frozenset[str]] = {
    "attention": frozenset({"attention", "thumbnail"}),
    "first": frozenset(),
    "random": frozenset({"generator"}),
    "center": frozenset(),
    "mean_farthest": frozenset(),
}


@register
class Todre:
    """Keeps tokens unlike one another at the input, and drops all of them once the text no longer looks at them."""

    cannot: frozenset[str] = frozenset()

    def __init__(
        self,
        *,
        diversity: str = "max_sum",
        pivot: str = "attention",
        stage2: bool = True,
        layers: list[int | float] | None = None,
        tau: float = 0.1,
    ) -> None:
        """diversity: "max_sum" (v2 of the paper) or "k_center" (v1). pivot: where stage 1 begins: "attention" (most
        CLS attention), "first", "random", "center" (of the grid) or "mean_farthest" (from the mean direction).

        stage2: whether to check inside the decoder. layers: where, by 0-based index or relative depth, [7/8] if not
        given. tau: share of attention below which a modality counts as unread. Raises: ValueError naming the setting.
        """
        if diversity not in DIVERSITIES:
            raise ValueError(f"todre: expected diversity to be one of {DIVERSITIES}, got {diversity!r}")
        if pivot not in PIVOTS:
            raise ValueError(f"todre: expected pivot to be one of {tuple(PIVOTS)}, got {pivot!r}")
        if not 0.0 <= tau <= 1.0:
            raise ValueError(f"todre: expected tau in [0, 1], got {tau}")
        self.diversity = diversity
        self.pivot = pivot
        self.tau = tau
        self.needs = PIVOTS[pivot]
        places = (7 / 8,) if layers is None else tuple(layers)
        self.plan = LayerPlan(prune_after=places, needs=frozenset({"attention"})) if stage2 else LayerPlan()

    @torch.no_grad()
    def select(
        self,
        tokens: TokenTensor,
        budget: Budget,
        *,
        attention: Tensor | None = None,
        thumbnail: Tensor | None = None,
        generator: torch.Generator | None = None,
        **context: Any,
    ) -> Selection:
        """Stage 1: slots [B, K] ascending.

        attention: [B, N], how much the CLS token of the vision tower's last layer (mean over heads) looks at a token;
        without one, what tokens receive on average; for a video all frames in one row. thumbnail: [B, N] bool, the
        tokens of the view of the whole image, among which the pivot is sought where an image is cut into tiles.
        generator: for the random pivot, one draw per item; None is torch's own.
        Raises: TypeError for context that the pivot does not take; ValueError for a budget out of range, tokens
        without embeds, attention that is missing or of another shape.
        """
        given = {"attention": attention, "thumbnail": thumbnail, "generator": generator}
        context |= {name: value for name, value in given.items() if value is not None}
        refuse_context(f"todre with pivot {self.pivot!r}", context, self.needs)
        embeds = embeds_of("todre", tokens)
        slots, counts = kept_tokens(tokens, budget)
        valid = tokens.mask
        start = self._pivot(tokens, attention, thumbnail, generator)
        if self.diversity == "max_sum":
            picks = max_sum(embeds, slots, start=start, valid=valid).indices
        else:
            picks = k_center(embeds, slots, "cosine", start=start, valid=valid).indices
        return as_selection(tokens, best_slots(pick_ranks(picks, valid), slots, counts), counts, budget)

    def _pivot(
        self,
        tokens: TokenTensor,
        attention: Tensor | None,
        thumbnail: Tensor | None,
        generator: torch.Generator | None,
    ) -> Tensor:
        """Slot [B] int64 of the token to begin with."""
        assert tokens.embeds is not None
        usable = tokens.mask & finite_tokens(tokens.embeds)
        if self.pivot == "attention":
            return _most_attended(usable, attention, thumbnail)
        if self.pivot == "random":
            return _random_slots(tokens, generator)
        if self.pivot == "center":
            return _central_slots(tokens)
        if self.pivot == "mean_farthest":
            return first_largest(distance_to_mean(compared(tokens.embeds, usable, "cosine"), usable), usable)
        return torch.zeros_like(tokens.valid_lengths)

    def begin(self, view: LayerView, budget: Budget | None = None) -> "Removal":
        """Stage 2 has no budget: it drops all visual tokens or none. Raises: ValueError if one is given."""
        if budget is not None:
            raise ValueError(
                f"todre: expected no budget inside the decoder, got {budget!r}; stage 2 drops all visual tokens or "
                "none, the budget belongs to `select`"
            )
        return Removal(self.tau)


@dataclass(frozen=True)
class Removal:
    """Stage 2 over one prefill; it remembers nothing between layers."""

    tau: float

    def observe(self, view: LayerView) -> None:
        """Nothing: what the check needs stands in the view of its own layer."""

    def prune(self, view: LayerView) -> LayerCut | None:
        """Drop the visual tokens of the items whose text and image no longer look at each other."""
        text_to_visual, visual_to_text = cross_attention(view)
        unread = (text_to_visual < self.tau) & (visual_to_text < self.tau) & (view.counts > 0)
        items = int(unread.sum())
        if not items:
            return None
        places = torch.arange(view.slots.shape[1], device=view.slots.device).expand_as(view.slots)
        lengths = view.counts.masked_fill(unread, 0)
        return LayerCut(places[:, :0] if items == int((view.counts > 0).sum()) else places, lengths)


def cross_attention(view: LayerView) -> tuple[Tensor, Tensor]:
    """(a_tv, a_vt), [B] each: the share of text rows' attention on visual tokens, and of visual rows' on text.

    A row of a softmax sums to one, so the share is the sum over the columns of the mean over the rows.
    """
    assert view.attention is not None
    text_to_visual = (view.attention(view.text) * view.visual).sum(1)
    # A visual token ahead of all text sees none; only the others have to be worked out.
    seeing = view.visual & (view.text.cumsum(1) > 0)
    share = seeing.sum(1) / view.visual.sum(1).clamp(min=1)
    visual_to_text = (view.attention(seeing) * view.text).sum(1) * share
    return text_to_visual, visual_to_text


def _most_attended(usable: Tensor, attention: Tensor | None, thumbnail: Tensor | None) -> Tensor:
    if attention is None:
        raise ValueError(
            "todre: expected attention [B, N] for pivot 'attention', got none; a tower that has none to give takes "
            "pivot='first'"
        )
    if attention.shape != usable.shape:
        raise ValueError(f"todre: expected attention {list(usable.shape)}, got {list(attention.shape)}")
    if thumbnail is not None and (thumbnail.shape != usable.shape or thumbnail.dtype != torch.bool):
        raise ValueError(
            f"todre: expected thumbnail bool {list(usable.shape)}, got {thumbnail.dtype} {list(thumbnail.shape)}"
        )
    return first_largest(attention, usable if thumbnail is None else usable & thumbnail)


def _random_slots(tokens: TokenTensor, generator: torch.Generator | None) -> Tensor:
    device = torch.device("cpu") if generator is None else generator.device
    # One draw per item, so that an item alone gets what it gets inside a batch.
    draws = [torch.rand(1, generator=generator, device=device, dtype=torch.float64) for _ in range(len(tokens))]
    drawn = torch.cat(draws).to(tokens.device) if draws else torch.empty(0, device=tokens.device)
    return (drawn * tokens.valid_lengths).long()


def _central_slots(tokens: TokenTensor) -> Tensor:
    """The valid token nearest to the middle of their grid, or of their row where there are no coords."""
    valid = tokens.mask
    if tokens.coords is None:
        return tokens.valid_lengths // 2
    cells = tokens.coords.double()
    outside = ~valid[:, :, None]
    if not cells.shape[1]:
        return torch.zeros_like(tokens.valid_lengths)
    low = cells.masked_fill(outside, torch.inf).amin(1, keepdim=True)
    high = cells.masked_fill(outside, -torch.inf).amax(1, keepdim=True)
    return first_largest(-(cells - (low + high) / 2).square().sum(2), valid)
