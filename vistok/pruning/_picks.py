"""From tokens picked one after the other to a rank for every token. B items, N token slots, K picks."""

import torch
from torch import Tensor


def pick_ranks(picks: Tensor, valid: Tensor) -> Tensor:
    """Ranks [B, N] int64: picks [B, K] in their order, then the other valid [B, N] tokens, then the rest, by slot."""
    slots = valid.shape[1]
    step = torch.arange(picks.shape[1], device=picks.device).expand_as(picks)
    # An item with fewer tokens than K repeats its last pick, which keeps the rank of its first.
    own = torch.full_like(valid, slots, dtype=torch.int64).scatter_reduce(1, picks, step, "amin")
    order = own.where(valid & (own < slots), slots + (~valid).to(torch.int64))
    return order.argsort(dim=1, stable=True).argsort(dim=1)
