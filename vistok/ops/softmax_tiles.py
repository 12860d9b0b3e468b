"""Softmax over the codes of every vector, one tile of vectors and codes at a time. N vectors, K codes, D width.

The logits x C^T are never whole: a tile of at most ROWS x CODES is made, used and dropped. Sums of exponentials are
taken relative to the largest logit so far and rescaled when a larger one comes (arXiv:1805.02867, algorithm 3).
"""

from collections.abc import Iterator

import torch
from torch import Tensor

ROWS, CODES = 256, 512


def check_vectors(op: str, name: str, vectors: Tensor, codebook: Tensor) -> None:
    """Raise ValueError, beginning with `op`, unless vectors are [N, D] and codebook [K, D], both float32 or float64."""
    if vectors.ndim != 2 or codebook.ndim != 2 or vectors.shape[1] != codebook.shape[1] or not len(codebook):
        raise ValueError(
            f"{op}: expected {name} [N, D] and codebook [K, D], K > 0, got {list(vectors.shape)} and "
            f"{list(codebook.shape)}"
        )
    if vectors.dtype != codebook.dtype or vectors.dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"{op}: expected {name} and codebook both float32 or both float64, got {vectors.dtype} and "
            f"{codebook.dtype}; convert them with .float()"
        )


def row_tiles(count: int) -> Iterator[slice]:
    """Slices of at most ROWS of `count` vectors, in order."""
    return (slice(start, min(start + ROWS, count)) for start in range(0, count, ROWS))


def code_tiles(count: int) -> Iterator[slice]:
    """Slices of at most CODES of `count` codes, in order."""
    return (slice(start, min(start + CODES, count)) for start in range(0, count, CODES))


class OnlineSoftmax:
    """Peak and sum of the exponentials of logits that come in tiles: of n vectors."""

    def __init__(self, rows: Tensor) -> None:
        """rows [n, D]: how many vectors, their dtype and device."""
        self.peak = rows.new_full((len(rows), 1), -torch.inf)
        self.total = rows.new_zeros(len(rows), 1)

    def add(self, logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """logits [n, k] of further codes -> exp(logits - peak) [n, k], and the old peak and new peak, [n, 1] each.

        What was summed up relative to the old peak must be multiplied by exp(old - new).
        """
        old, self.peak = self.peak, torch.maximum(self.peak, logits.amax(1, keepdim=True))
        weights = (logits - self.peak).exp_()
        self.total = self.total * (old - self.peak).exp() + weights.sum(1, keepdim=True)
        return weights, old, self.peak
