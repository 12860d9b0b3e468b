"""The k largest scores, the same ones on every device: torch.topk promises nothing about ties."""

import torch
from torch import Tensor


def stable_topk(scores: Tensor, k: int) -> Tensor:
    """Indices [..., k] int64, ascending, of the k largest of scores [..., N]; of equal scores the lowest index wins.

    NaN counts as -inf. Raises: ValueError unless 0 <= k <= N.
    """
    if not 0 <= k <= scores.shape[-1]:
        raise ValueError(f"stable_topk: expected 0 <= k <= {scores.shape[-1]}, got {k}")
    ordered = scores.masked_fill(scores.isnan(), -torch.inf).sort(dim=-1, descending=True, stable=True).indices
    return ordered[..., :k].sort(dim=-1).values
