"""Which tokens an op may pick, where it begins, and the first of the largest values.

B items, N token slots, D width. A token counts if it is valid and all its numbers are finite.
"""

import torch
from torch import Tensor

from vistok.ops.token_points import compared, distance_to_mean
from vistok.rows import is_readable

STARTS = ("first", "mean-farthest", "max-score")


def check_tokens(op: str, x: Tensor, k: int, valid: Tensor | None, lengths: Tensor | None) -> Tensor:
    """Which slots of x [B, N, D] are valid, [B, N] bool: those that `valid` [B, N] and `lengths` [B] both allow.

    Raises: ValueError, beginning with `op`, if a shape or dtype is wrong or k is negative.
    """
    if x.ndim != 3 or not x.is_floating_point():
        raise ValueError(f"{op}: expected float x [B, N, D], got {list(x.shape)} {x.dtype}")
    if isinstance(k, bool) or not isinstance(k, int) or k < 0:
        raise ValueError(f"{op}: expected a number of picks k >= 0, got {k!r}")
    if valid is not None and (valid.dtype != torch.bool or valid.shape != x.shape[:2]):
        raise ValueError(f"{op}: expected valid bool {list(x.shape[:2])}, got {list(valid.shape)} {valid.dtype}")
    if lengths is not None and (lengths.dtype not in (torch.int32, torch.int64) or lengths.shape != x.shape[:1]):
        raise ValueError(f"{op}: expected lengths int64 {list(x.shape[:1])}, got {list(lengths.shape)} {lengths.dtype}")
    allowed = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device) if valid is None else valid
    if lengths is None:
        return allowed
    return allowed & (torch.arange(x.shape[1], device=x.device) < lengths[:, None])


def start_slots(op: str, x: Tensor, valid: Tensor, start: Tensor | str, scores: Tensor | None, metric: str) -> Tensor:
    """Slot [B] int64 where each item begins, before `first_pick` replaces those that do not count.

    start: slots [B] int64, "first", "mean-farthest" (from the mean of the tokens that count) or "max-score" (by scores
    [B, N]). Raises: ValueError, beginning with `op`, if it is none of these or `scores` does not belong to it.
    """
    if (scores is not None) != (isinstance(start, str) and start == "max-score"):
        raise ValueError(f"{op}: expected scores [B, N] with start='max-score' and only there")
    if isinstance(start, Tensor):
        return _given_slots(op, x, start)
    if start not in STARTS:
        raise ValueError(f"{op}: expected start slots [B] or one of {STARTS}, got {start!r}")
    if start == "first":
        return x.new_zeros(len(x), dtype=torch.int64)
    usable = valid & finite_tokens(x)
    if scores is None:
        return first_largest(distance_to_mean(compared(x, usable, metric), usable), usable)
    if scores.shape != x.shape[:2]:
        raise ValueError(f"{op}: expected scores {list(x.shape[:2])}, got {list(scores.shape)}")
    return first_largest(scores.detach(), usable)


def _given_slots(op: str, x: Tensor, start: Tensor) -> Tensor:
    if start.dtype not in (torch.int32, torch.int64) or start.shape != x.shape[:1]:
        raise ValueError(f"{op}: expected start int64 {list(x.shape[:1])}, got {list(start.shape)} {start.dtype}")
    known = is_readable(start) and start.numel() and x.shape[1]
    if known and (int(start.min()) < 0 or int(start.max()) >= x.shape[1]):
        raise ValueError(f"{op}: expected start slots in 0..{x.shape[1] - 1}, got {start.tolist()}")
    return start.to(x.device, torch.int64)


def first_pick(start: Tensor, usable: Tensor) -> Tensor:
    """start [B] where that token counts by `usable` [B, N], else the lowest slot that does, 0 if there is none."""
    if not usable.shape[1]:
        return torch.zeros_like(start)
    slots = torch.arange(usable.shape[1], device=usable.device)
    lowest = torch.where(usable, slots, usable.shape[1]).amin(1)
    fits = (usable & (slots == start[:, None])).any(1)
    return torch.where(fits, start, lowest.where(lowest < usable.shape[1], 0))


def finite_tokens(x: Tensor) -> Tensor:
    """x [B, N, D] -> [B, N] bool."""
    if not x.shape[2]:
        return x.new_ones(x.shape[:2], dtype=torch.bool)
    return x.detach().abs().amax(2).isfinite()  # NaN is an amax, too


def first_largest(values: Tensor, allowed: Tensor) -> Tensor:
    """Slot [B] of the largest allowed value [B, N], the lowest among equals; NaN counts as least, 0 if none is allowed.

    On GPUs argmax promises no order among equals.
    """
    if not values.shape[1]:
        return values.new_zeros(len(values), dtype=torch.int64)
    values = values.nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf).masked_fill(~allowed, -torch.inf)
    position = torch.arange(values.shape[1], device=values.device)
    best = values.amax(1, keepdim=True)
    first = torch.where(allowed & (values == best), position, values.shape[1]).amin(1)
    return torch.where(first < values.shape[1], first, 0)
