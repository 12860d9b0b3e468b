"""How much of a codebook is in use: counts that add up over batches and workers, and what they say."""

import torch
from torch import Tensor


def code_counts(indices: Tensor, codebook_size: int, mask: Tensor | None = None) -> Tensor:
    """Occurrences of every id: indices [...] int64, mask [...] bool or None -> [codebook_size] int64; counts add up.

    Ids of -1 (no token) are not counted.
    """
    seen = indices >= 0 if mask is None else mask & (indices >= 0)
    # scatter_add has a static output shape; bincount would break a compiled graph.
    return torch.zeros(codebook_size, dtype=torch.int64, device=indices.device).scatter_add(
        0, indices.where(seen, 0).reshape(-1), seen.to(torch.int64).reshape(-1)
    )


def usage(counts: Tensor) -> Tensor:
    """Share of codes seen at least once: counts [K] -> []; say over how many tokens when you report it."""
    return (counts > 0).float().mean()


def perplexity(counts: Tensor) -> Tensor:
    """exp of the entropy of the empirical distribution: counts [K] -> [] (0 tokens give 1)."""
    p = counts.double() / counts.sum().clamp(min=1)
    return torch.exp(-torch.xlogy(p, p).sum()).float()


def batch_usage(indices: Tensor, codebook_size: int) -> dict[str, Tensor]:
    """{"usage": [], "perplexity": []} of one batch: indices [T] int64, all valid; memory grows with T, not with K.

    The same numbers as `usage` and `perplexity` of `code_counts`, for codebooks too large to count (2^36 sign codes).
    """
    ordered = indices.reshape(-1).sort().values
    starts = torch.ones_like(ordered)
    starts[1:] = ordered[1:] != ordered[:-1]
    runs = torch.zeros_like(ordered).scatter_add(0, starts.cumsum(0) - 1, torch.ones_like(ordered))
    used = (runs > 0).sum().double() / codebook_size
    return {"usage": used.float(), "perplexity": perplexity(runs)}
