"""VidCom2: Video Compression Commander: Plug-and-Play Inference Acceleration for Video Large Language Models,
arXiv:2505.14454.

On the half of the channels that vary least over the video, tokens y are scaled to length one. g(y, c) = the sum over
a = 1/8, 1/4, 1/2, 1, 2 of exp(-|y - c|^2 / 2a) tells how near y is to a center: v to the mean of the video, f to the
mean of its frame. A frame is distinct by u = -mean v; with p = softmax(u / 0.01) over the F frames it may keep
(1 + p - 1/F) of what falls to it, and in a frame the tokens of least v + f stay. So does the authors' code; channels,
Gaussians and the temperature are not in the paper.
Ours: the code rounds the share of each frame alone, so that the total is not the budget's; here the same shares are
rounded with the one divisor for which they add up to it (Webster's method), which is the code's numbers where these
do. A small budget may leave a frame without a token, where the code keeps one. What belongs to no frame (a separator)
is kept first, and tokens with NaN or infinity are taken last; ties go to the lowest slot.
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

_WIDTHS = (1 / 8, 1 / 4, 1 / 2, 1, 2)
_LAST = torch.iinfo(torch.int64).max


@register
class VidCom2:
    """Keeps what is unlike the video and its frame, and more of frames that stand out."""

    cannot: frozenset[str] = frozenset()
    needs: frozenset[str] = frozenset({"frames"})

    def __init__(self, *, channels: float = 0.5, temperature: float = 0.01) -> None:
        """channels: share of them that is compared; temperature: of the softmax over frames, low for few that gain.

        Raises: ValueError naming a setting out of range.
        """
        if not 0.0 < channels <= 1.0:
            raise ValueError(f"vidcom2: expected channels in (0, 1], got {channels}")
        if not temperature > 0.0:
            raise ValueError(f"vidcom2: expected temperature > 0, got {temperature}")
        self.channels = channels
        self.temperature = temperature

    @torch.no_grad()
    def select(self, tokens: TokenTensor, budget: Budget, *, frames: Tensor | None = None, **context: Any) -> Selection:
        """Slots [B, K] ascending.

        frames: [B, N] int64, the frame of each token, -1 for what belongs to none.
        Raises: TypeError for other context; ValueError for a budget out of range, tokens without embeds, frames missing
        or misshapen.
        """
        refuse_context("vidcom2", context, self.needs)
        embeds, valid = embeds_of("vidcom2", tokens), tokens.mask
        frames = required_context("vidcom2", "frames", frames, *valid.shape)
        slots, counts = kept_tokens(tokens, budget)
        usable = valid & finite_tokens(embeds)
        counted = usable & (frames >= 0)
        group = first_places(frames, counted)
        likeness, share = self._compare(embeds, group, counted)
        turn = turns(likeness, share, group, counted)
        # What is of no frame comes before every turn.
        ranks = score_ranks(-turn.where(counted, -1).where(usable, torch.nan), valid)
        return as_selection(tokens, best_slots(ranks, slots, counts), counts, budget)

    def _compare(self, embeds: Tensor, group: Tensor, counted: Tensor) -> tuple[Tensor, Tensor]:
        """v + f of every token, and how many of its frame's tokens may be kept, up to a factor: [B, N] float64 each."""
        points = compared(steady_channels(embeds, counted, self.channels), counted, "cosine")
        frame = Assignment(group.where(counted, -1), group.shape[1])
        video = Assignment(torch.zeros_like(group).where(counted, -1), 1)
        of_frame, size = merge(points, frame)
        to_video = gaussians(points, merge(points, video).values)
        to_frame = gaussians(points, take_rows(of_frame, group))
        distinct = -merge(to_video, frame).values
        there = size > 0
        # A row without any frame is all -inf, whose softmax is NaN.
        chance = (distinct / self.temperature).masked_fill(~there, -torch.inf).softmax(1).masked_fill(~there, 0)
        gain = 1 + chance - 1 / there.sum(1, keepdim=True).clamp(min=1)
        return to_video + to_frame, (size * gain).gather(1, group)


def first_places(frames: Tensor, counted: Tensor) -> Tensor:
    """Of the counted [B, N] tokens, how many belong to an earlier frame: [B, N] int64, one number per frame; else 0."""
    frame = frames.masked_fill(~counted, _LAST)
    place = torch.searchsorted(frame.sort(dim=1).values, frame) if frame.shape[1] else frame
    return place.masked_fill(~counted, 0)


def steady_channels(embeds: Tensor, counted: Tensor, share: float) -> Tensor:
    """The channels of embeds [B, N, D] with least variance over the counted [B, N] tokens: [B, N, max(1, share D)]."""
    x = embeds.to(torch.promote_types(embeds.dtype, torch.float32)).masked_fill(~counted[..., None], 0)
    total = counted.sum(1).clamp(min=1)[:, None]
    mean = x.sum(1, dtype=torch.float64) / total
    apart = (x - mean[:, None].to(x.dtype)).masked_fill(~counted[..., None], 0)
    variance = (apart.square().sum(1, dtype=torch.float64) / total).float()
    kept = min(x.shape[2], max(1, int(share * x.shape[2])))
    channels = variance.sort(dim=1, stable=True).indices[:, :kept]
    return x.gather(2, channels[:, None].expand(-1, x.shape[1], -1))


def gaussians(points: Tensor, center: Tensor) -> Tensor:
    """g [B, N] float64 of points [B, N, C] and center [B, N or 1, C]."""
    distance = (points - center).square().sum(2, dtype=torch.float64)
    return torch.stack([torch.exp(-distance / (2 * width)) for width in _WIDTHS]).sum(0)


def turns(likeness: Tensor, share: Tensor, group: Tensor, counted: Tensor) -> Tensor:
    """When each token is taken, [B, N] float64: (r + 1/2) / share, r its rank by least likeness within its frame.

    The k earliest turns are Webster's apportionment of k to the frames. group: as of `first_places`.
    """
    # Rounded, equal tokens are equally like.
    order = likeness.float().argsort(dim=1, stable=True)
    frame = group.masked_fill(~counted, _LAST).gather(1, order)
    order = order.gather(1, frame.argsort(dim=1, stable=True))
    rank = order.argsort(dim=1) - group
    return (rank + 0.5) / share.where(counted, 1)
