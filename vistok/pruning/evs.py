"""Efficient Video Sampling: Pruning Temporally Redundant Tokens for Faster VLM Inference, arXiv:2510.14624.

A token of frame t scores 1 - cos with the token of the same cell in frame t - 1, those of the first frame come before
all others, and the k best of the whole video stay, by a stable sort; the paper's pruning rate q is 1 - k / N.
Ours: the budget holds even where it is less than one frame, which the authors' code keeps whole. The cell of a token is
its place among those of its frame. What has nothing to be compared with, for want of such a frame or cell or because it
belongs to none (a separator), counts as of the first frame; so an image keeps its first tokens. Tokens with NaN or
infinity are taken last.
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

_FIRST = 3.0  # 1 - cos is 2 at most
_LAST = torch.iinfo(torch.int64).max


@register
class EVS:
    """Keeps the tokens of a video that change from frame to frame."""

    cannot: frozenset[str] = frozenset()
    needs: frozenset[str] = frozenset({"frames"})

    @torch.no_grad()
    def select(self, tokens: TokenTensor, budget: Budget, *, frames: Tensor | None = None, **context: Any) -> Selection:
        """Slots [B, K] ascending; the scores are 1 - cos, 3 where there is nothing to compare with.

        frames: [B, N] int64, the frame of each token, -1 for what belongs to none.
        Raises: TypeError for other context; ValueError for a budget out of range, tokens without embeds, frames missing
        or misshapen.
        """
        refuse_context("evs", context, self.needs)
        embeds, valid = embeds_of("evs", tokens), tokens.mask
        frames = required_context("evs", "frames", frames, *valid.shape)
        slots, counts = kept_tokens(tokens, budget)
        scores = change(embeds, frames, valid)
        selection = as_selection(tokens, best_slots(score_ranks(scores, valid), slots, counts), counts, budget)
        return selection._replace(scores=scores)


def change(embeds: Tensor, frames: Tensor, valid: Tensor) -> Tensor:
    """Scores [B, N] float32 of embeds [B, N, D] by frames [B, N] int64, those that are valid [B, N] bool."""
    usable = valid & finite_tokens(embeds)
    points = compared(embeds, usable, "cosine")
    before = previous(frames, valid)
    # 1 - cos as half of a squared distance: what does not change scores 0 to the bit, and the earliest comes first.
    moved = points - take_rows(points, before.clamp(min=0))
    scores = (moved.square().sum(2) / 2).float().masked_fill(before < 0, _FIRST)
    return scores.masked_fill(~usable, -torch.inf)


def previous(frames: Tensor, valid: Tensor) -> Tensor:
    """Slot [B, N] int64 of the same cell in the frame before, -1 where there is none; frames and valid are [B, N]."""
    if not valid.shape[1]:
        return torch.zeros_like(frames)
    frame = frames.masked_fill(~valid | (frames < 0), _LAST)
    ordered, order = frame.sort(dim=1, stable=True)
    start = torch.searchsorted(ordered, ordered)
    cell = torch.arange(ordered.shape[1], device=frames.device) - start
    # Where that frame is missing, its place in the order is the start of this one.
    place = torch.searchsorted(ordered, ordered - 1) + cell
    found = order.gather(1, place.clamp(max=ordered.shape[1] - 1)).where((place < start) & (ordered < _LAST), -1)
    return torch.full_like(found, -1).scatter(1, order, found)
