"""Scores of rows against a codebook, one tile of both at a time. N rows, K codes, D width.

score_k = (x - m).(c_k - m) - |c_k - m|^2 / 2 (l2, m the centre), x.c_k / |c_k| (cosine) or x.c_k (dot).
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

ROWS = 512
_CODES = 1024


class Codebook(NamedTuple):
    """Codes made ready: codes [K, D] moved or normalised, bias [K] (-inf where a code never wins), centre [D]."""

    codes: Tensor
    bias: Tensor
    centre: Tensor


def prepare(codebook: Tensor, metric: str) -> Codebook:
    """codebook [K, D] float32 or float64, metric "l2", "cosine" or "dot": the same numbers as score terms."""
    finite = codebook.isfinite().all(1)
    codes = codebook.where(finite[:, None], 0)
    bias, centre = codes.new_zeros(len(codes)), codes.new_zeros(codes.shape[1])
    if metric == "cosine":
        norm = codes.double().norm(dim=1, keepdim=True)
        codes = (codes.double() / norm.where(norm > 0, 1)).to(codes.dtype)
    if metric == "l2":
        centre = _centre(codes.double(), finite).to(codes.dtype)
        codes = (codes - centre).where(finite[:, None], 0)
        bias = (codes.double().square().sum(1) / -2).to(codes.dtype)
    return Codebook(codes, bias.where(finite, -torch.inf), centre)


def _centre(codes: Tensor, finite: Tensor) -> Tensor:
    """The mean code, rounded to a power of two so coarse that whole numbers stay whole; 0 where it would not help."""
    count = finite.sum().clamp(min=1)
    mean = codes.sum(0) / count
    moved = (codes - mean).where(finite[:, None], 0)
    step = torch.exp2(torch.log2(moved.abs().amax().clamp(min=2.0**-149)).floor())
    helps = mean.square().sum() > moved.square().sum() / count
    return ((mean / step).round() * step).where(helps, 0)


def score_tiles(rows: Tensor, book: Codebook) -> Iterator[tuple[int, Tensor]]:
    """First code of a tile, and scores [N, codes of the tile] of rows [N, D]; NaN where they overflow."""
    for start in range(0, len(book.codes), _CODES):
        tile = slice(start, start + _CODES)
        yield start, torch.addmm(book.bias[tile], rows, book.codes[tile].T)


def largest_score(rows: Tensor, book: Codebook) -> tuple[Tensor, Tensor]:
    """Largest score [N] of rows [N, D] and the lowest index [N] int64 that has it; -inf and 0 where none is finite."""
    best = rows.new_full((len(rows),), -torch.inf)
    index = torch.zeros(len(rows), dtype=torch.int64, device=rows.device)
    for start, score in score_tiles(rows, book):
        largest, found = _first_largest(score)
        wins = largest > best  # strict: an equal score in a later tile does not win
        best, index = largest.where(wins, best), (found + start).where(wins, index)
    return best, index


def _first_largest(score: Tensor) -> tuple[Tensor, Tensor]:
    """Largest number of every row of scores [N, K] and the first place that has it; NaN is no number."""
    if not score.is_cuda:
        largest, found = score.max(1)  # the first of equal ones on the CPU, as the tests make sure
        if not bool(largest.isnan().any()):
            return largest, found
    score = score.where(~score.isnan(), -torch.inf)
    largest = score.amax(1)
    place = torch.arange(score.shape[1], device=score.device)
    return largest, torch.where(score == largest[:, None], place, score.shape[1]).amin(1)


def move_rows(x: Tensor, book: Codebook) -> tuple[Tensor, Tensor]:
    """x [N, D] -> rows [N, D] in the codebook's dtype, moved by its centre, and finite [N]; other rows are 0."""
    rows = x.to(book.codes.dtype)
    finite = rows.isfinite().all(1)
    return (rows - book.centre).where(finite[:, None], 0), finite
