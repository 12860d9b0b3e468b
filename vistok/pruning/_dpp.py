"""Greedy MAP of a determinantal point process, without its kernel. B items, N token slots, D width, K picks.

L = diag(q) S diag(q), S = X X^T; the next pick is argmax_i det L over the picks and i, that is argmax_i q_i^2 r_i:
r_i = 1 - sum_t c_ti^2 is what of row i the picks do not span, and c_t = (S_j - sum_{s<t} c_sj c_s) / sqrt(r_j) is the
row that pick j adds to the Cholesky factor (Chen, Zhang, Zhou: Fast Greedy MAP Inference for Determinantal Point
Process, arXiv:1709.05135). One product of X with a vector a step takes the place of the N x N matrix.
"""

import torch
from torch import Tensor

from vistok.ops.token_choice import first_largest

_SPANNED = 1e-5  # r of rows at which products of float32 numbers say no more


def greedy_dpp(points: Tensor, quality: Tensor, k: int, valid: Tensor) -> Tensor:
    """Picks [B, k] int64 in their order; no gradient.

    points: [B, N, D] float32 or float64, rows of length one, or zero. quality: q [B, N] >= 0. valid: [B, N] bool, what
    may be picked. Ties go to the lowest slot. Once the picks span all rows every set has determinant zero, and those of
    most quality follow. An item with fewer valid tokens than k repeats its last pick, or 0.
    """
    batch, slots = valid.shape
    picks = torch.zeros(batch, k, dtype=torch.int64, device=points.device)
    if not slots:
        return picks
    quality = quality.detach().double().nan_to_num(0.0).masked_fill(~valid, 0)
    # All gains are >= 0, so that a spanned token is taken after all others.
    spanned = quality - quality.amax(1, keepdim=True) - 1
    points = points.detach().double()
    left = (points != 0).any(2).double()
    factor = points.new_zeros(batch, k, slots)
    pick = picks[:, :1]
    for step in range(k):
        # Compared as float32: equal rows differ in the last bits of a float64 product.
        gain = torch.where(left > _SPANNED, quality.square() * left, spanned).float()
        pick = torch.where(valid.any(1, keepdim=True), first_largest(gain, valid)[:, None], pick)
        picks[:, step : step + 1] = pick
        row = _next_row(points, factor[:, :step], left, pick)
        factor[:, step] = row
        left = (left - row.square()).clamp(min=0)
        valid = valid.scatter(1, pick, False)
    return picks


def _next_row(points: Tensor, factor: Tensor, left: Tensor, pick: Tensor) -> Tensor:
    """The row [B, N] that pick [B, 1] adds to factor [B, t, N]; zero where the others span it."""
    chosen = points.gather(1, pick[:, :, None].expand(-1, -1, points.shape[2]))
    own = factor.gather(2, pick[:, :, None].expand(-1, factor.shape[1], -1))
    row = (points @ chosen.mT).squeeze(2) - (own.mT @ factor).squeeze(1)
    pivot = left.gather(1, pick)
    return torch.where(pivot > _SPANNED, row / pivot.clamp(min=_SPANNED).sqrt(), 0)
