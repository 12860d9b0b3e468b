"""How many picks are enough, image by image. B items, N token slots, D width, K picks in their order.

"radius": stop at the first pick that lies nearer to an earlier one than the threshold, by 1 - cosine. "similarity": at
the first whose mean cosine with all earlier ones is above it. "mass": behind the pick with which the picks hold that
share of all that the tokens are worth. One token is kept at least.
"""

import torch
from torch import Tensor

RULES = ("radius", "similarity", "mass")


def enough(rule: str, threshold: float, points: Tensor, worth: Tensor, picks: Tensor) -> Tensor:
    """Counts [B] int64 in 1..K (0 if K is); points [B, N, D] of length one, worth [B, N], picks [B, K]."""
    steps = picks.shape[1]
    if not steps or not worth.shape[1]:
        return torch.zeros(len(picks), dtype=torch.int64, device=picks.device)
    if rule == "mass":
        held = worth.double().gather(1, picks).cumsum(1) / worth.double().sum(1, keepdim=True).clamp(min=1e-30)
        # 1e-9: a sum of all shares may miss 1 by a rounding.
        return ((held < threshold - 1e-9).sum(1) + 1).clamp(max=steps)
    chosen = points.gather(1, picks[:, :, None].expand(-1, -1, points.shape[2]))
    done = torch.zeros(len(picks), dtype=torch.bool, device=picks.device)
    counts = torch.ones(len(picks), dtype=torch.int64, device=picks.device)
    for step in range(1, steps):
        cosine = (chosen[:, :step] * chosen[:, step : step + 1]).sum(2)
        near = 1 - cosine.amax(1) < threshold if rule == "radius" else cosine.mean(1) > threshold
        done = done | near
        counts = counts + (~done).long()
    return counts
