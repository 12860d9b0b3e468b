"""From a score for every token to a rank for every token. B items, N token slots."""

import torch
from torch import Tensor


def score_ranks(scores: Tensor, valid: Tensor) -> Tensor:
    """Ranks [B, N] int64, 0 = largest of scores [B, N]; the lowest slot wins among equals, NaN counts as least.

    Slots that are not valid [B, N] bool come last, whatever their scores.
    """
    least = torch.finfo(scores.dtype).min
    ranked = scores.nan_to_num(nan=least, posinf=torch.inf, neginf=least).masked_fill(~valid, -torch.inf)
    return ranked.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
