"""Weighted mean of the rows that share a slot, without floating-point atomics.

Tokens are sorted by slot; one program sums all rows of one slot in ascending order, for some columns. The only row of a
slot is copied.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

ROWS = 8


@triton.jit
def merge_kernel(
    x, sizes, order, starts, out, totals, slots, item_stride, slot_stride,
    WIDTH: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    target = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    first, last = tl.load(starts + target), tl.load(starts + target + 1)
    alone = last - first == 1
    total = 0.0
    summed = tl.zeros([COLUMNS], tl.float32)
    for begin in range(first, last, ROWS):
        place = begin + tl.arange(0, ROWS)
        token = tl.load(order + place, place < last, other=0)
        size = tl.load(sizes + token, place < last, other=0.0)
        start = token // slots * item_stride + token % slots * slot_stride
        inside = (place < last)[:, None] & (column < WIDTH)[None, :]
        values = tl.load(x + start[:, None] + column[None, :], inside, other=0.0).to(tl.float32)
        total += tl.sum(size, 0)
        summed += tl.sum(values * tl.where(alone, 1.0, size)[:, None], 0)
    mean = summed / tl.where(alone | (total == 0), 1.0, total)
    mean = tl.where(total == 0, 0.0, mean)
    tl.store(out + target * WIDTH + column, mean.to(out.dtype.element_ty), column < WIDTH)
    tl.store(totals + target, total, tl.program_id(1) == 0)


def columns(width: int) -> int:
    """Columns of a tile."""
    return int(min(256, max(16, triton.next_power_of_2(width))))


def warps(width: int) -> int:
    """So many that each thread has enough numbers for 16-byte loads."""
    return max(1, columns(width) // 64)


def weighted_mean(x: Tensor, slot: Tensor, sizes: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """x [B, N, W] float with neighbours in W, slot [B, N] int64 (outside of 0..count-1: dropped), sizes [B, N] float32
    -> means [B, count, W] of x's type, sums of sizes [B, count] float32."""
    items, slots, width = x.shape
    out, totals = x.new_empty(items, count, width), torch.zeros(items, count, device=x.device)
    if not totals.numel():
        return out, totals
    item = torch.arange(items, device=x.device)[:, None] * count
    target = torch.where((slot >= 0) & (slot < count), slot + item, items * count).flatten()
    ordered, order = target.sort(stable=True)
    starts = torch.searchsorted(ordered, torch.arange(items * count + 1, device=x.device))
    merge_kernel[(items * count, max(1, triton.cdiv(width, columns(width))))](
        x, sizes.contiguous(), order, starts, out, totals, max(1, slots), x.stride(0), x.stride(1),
        WIDTH=width, ROWS=ROWS, COLUMNS=columns(width), num_warps=warps(width),
    )  # fmt: skip
    return out, totals
