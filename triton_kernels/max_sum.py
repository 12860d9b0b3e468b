"""Least similar tokens first: values are minus the sums of products with the picks (kernels: greedy_picks)."""

import torch
from torch import Tensor

from .greedy_picks import pick


def least_similar(points: Tensor, usable: Tensor, start: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Unit points [B, N, D] float32, usable [B, N] bool, start [B] int64 -> indices and those values [B, k]."""
    values = torch.zeros(usable.shape, device=points.device).masked_fill_(~usable, -torch.inf)
    return pick(points, values, start, k, nearest=False)
