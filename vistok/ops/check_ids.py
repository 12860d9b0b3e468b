"""Ids from a file or a language model, checked before a codebook is read with them."""

import torch
from torch import Tensor


def check_ids(owner: str, indices: Tensor, codebook_size: int) -> None:
    """Raise ValueError naming `owner` unless indices [...] are int64 in -1..codebook_size-1 (-1 = no token)."""
    if indices.dtype != torch.int64:
        raise ValueError(f"{owner}: expected int64 ids, got {indices.dtype}")
    # The range needs a device synchronisation, which a compiled graph cannot hold.
    if torch.compiler.is_compiling() or not indices.numel():
        return
    low, high = int(indices.min()), int(indices.max())
    if low < -1 or high >= codebook_size:
        raise ValueError(f"{owner}: expected ids in 0..{codebook_size - 1}, or -1 for no token, got {low}..{high}")
