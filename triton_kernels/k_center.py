"""Farthest tokens first: values are squared distances to the nearest pick (kernels: greedy_picks)."""

import torch
from torch import Tensor

from .greedy_picks import pick


def farthest_first(points: Tensor, usable: Tensor, start: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """points [B, N, D] float32, usable [B, N] bool, start [B] int64 -> indices and squared radius [B, k]."""
    nearest = torch.full(usable.shape, torch.inf, device=points.device).masked_fill_(~usable, -torch.inf)
    return pick(points, nearest, start, k, nearest=True)
