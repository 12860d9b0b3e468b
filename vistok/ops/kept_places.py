"""Where the kept slots of a padded batch lie, one item after the other. B items, N slots, T kept slots."""

from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from vistok.rows import is_readable


def kept_places(keep: Tensor, lengths: Tensor | None, max_total: int | None) -> tuple[Tensor, Tensor, int]:
    """Places [T] int64 in the flattened `keep` that count (-1: none), cu_seqlens [B+1] int32, and max_len."""
    batch, slots = keep.shape
    from_mask = keep.dtype == torch.bool
    if not from_mask and lengths is None and max_total is None:
        starts = torch.arange(batch + 1, dtype=torch.int32, device=keep.device) * slots
        return torch.arange(batch * slots, device=keep.device), starts, slots
    counted = keep if from_mask else torch.ones_like(keep, dtype=torch.bool)
    if lengths is not None:
        counted = counted & (torch.arange(slots, device=keep.device) < lengths[:, None])
    if max_total is None and is_readable(keep):
        # Several times faster than torch.nonzero.
        places = torch.from_numpy(np.flatnonzero(counted.numpy()))
        starts = torch.searchsorted(places, torch.arange(batch + 1) * slots, out_int32=True)
        return places, starts, max((end - start for start, end in pairwise(starts.tolist())), default=0)
    return _places_by_sum(counted, max_total)


def _places_by_sum(counted: Tensor, max_total: int | None) -> tuple[Tensor, Tensor, int]:
    """The same without torch.nonzero: one synchronization, or none."""
    batch, slots = counted.shape
    starts = torch.zeros(batch + 1, dtype=torch.int32, device=counted.device)
    if not counted.numel():
        return torch.full((max_total or 0,), -1, device=counted.device), starts, 0
    passed = counted.flatten().cumsum(0)
    starts[1:] = passed[slots - 1 :: slots]
    if max_total is None:
        total, longest = torch.stack([starts[-1], starts.diff().amax()]).tolist()
    else:
        _check_total(starts[-1], max_total)
        total, longest = max_total, slots
    target = torch.where(counted.flatten(), passed - 1, total).clamp(max=total)
    places = torch.full((total + 1,), -1, device=counted.device)
    places.scatter_(0, target, torch.arange(len(target), device=counted.device))
    return places[:total], starts, longest


def _check_total(kept: Tensor, max_total: int) -> None:
    if is_readable(kept) and int(kept) > max_total:
        raise ValueError(f"compact: expected at most max_total={max_total} kept slots, got {int(kept)}")
    torch._assert_async(kept <= max_total, "compact: more slots are kept than max_total")


def slots_at(index: Tensor, places: Tensor, slots: int) -> Tensor:
    """b * slots + index[b, k] at places b * K + k [T], -1 at -1. Raises: ValueError if such a slot does not exist."""
    item = torch.arange(len(index), device=index.device)[:, None] * slots
    if not places.numel() or not index.numel():
        return places
    if is_readable(index):
        named = index.flatten()[places.clamp(min=0)].where(places >= 0, 0)
        if int(named.min()) < 0 or (int(named.max()) >= slots and bool((places >= 0).any())):
            raise ValueError(f"compact: expected slots in 0..{slots - 1}, got {int(named.min())}..{int(named.max())}")
    return (index + item).flatten()[places.clamp(min=0)].where(places >= 0, -1)
