"""What pruners between decoder layers share: who looks, what is seen, which places stay.

B items, n tokens, V visual tokens of the item that has most; scores are float32, and of equal ones the lowest place
comes first, NaN last.
"""

import torch
from torch import Tensor

from vistok.protocols import LayerCut, LayerView
from vistok.rows import take_rows


def last_token(view: LayerView) -> Tensor:
    """[B, n] bool: the last valid token of every prompt."""
    return view.valid & (view.valid.flip(1).cumsum(1).flip(1) == 1)


def members(view: LayerView) -> Tensor:
    """[B, V] bool: which entries of `view.slots` count."""
    return torch.arange(view.slots.shape[1], device=view.slots.device) < view.counts[:, None]


def at_visual(values: Tensor, view: LayerView) -> Tensor:
    """values [B, n, ...] of all tokens -> [B, V, ...] of the visual ones."""
    return take_rows(values, view.slots)


def ranked(scores: Tensor, allowed: Tensor) -> Tensor:
    """Places [B, N] int64: those allowed [B, N] by falling scores [B, N], then the others."""
    order = scores.masked_fill(scores.isnan(), -torch.inf).sort(dim=1, descending=True, stable=True).indices
    behind = (~allowed).to(torch.int8).gather(1, order)
    return order.gather(1, behind.sort(dim=1, stable=True).indices)


def highest(scores: Tensor, allowed: Tensor, counts: Tensor) -> Tensor:
    """[B, N] bool: the counts [B] highest of scores [B, N] among those allowed [B, N]; all of them if too few."""
    steps = torch.arange(scores.shape[1], device=scores.device).expand_as(allowed)
    chosen = torch.zeros_like(allowed).scatter(1, ranked(scores, allowed), steps < counts[:, None])
    return chosen & allowed


def cut_to(view: LayerView, chosen: Tensor, scores: Tensor | None = None, embeds: Tensor | None = None) -> LayerCut:
    """The cut that keeps chosen [B, V] bool.

    scores [B, V]: what decided. embeds [B, V, D]: what takes the place of the visual tokens, where some are merged.
    """
    lengths = chosen.sum(1)
    width = int(lengths.max()) if len(lengths) else 0
    index = (~chosen).to(torch.int8).sort(dim=1, stable=True).indices[:, :width]
    return LayerCut(
        index,
        lengths,
        None if scores is None else scores.float().masked_fill(~members(view), 0),
        None if embeds is None else take_rows(embeds, index),
    )
