"""Sums of the rows that each code won, and their squared distance, without floating-point atomics.

Rows are sorted by code. A program sums one piece, at most PIECE rows of one code; a second launch of the same kernel
sums the pieces of each code. The order of additions depends on the ids alone.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import aligned

PIECE, ROWS, COLUMNS = 256, 32, 64


@triton.jit
def segment_sum_kernel(
    rows, order, starts, ends, out, rows_stride,
    WIDTH: tl.constexpr, ORDERED: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    segment = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    first, last = tl.load(starts + segment), tl.load(ends + segment)
    total = tl.zeros([COLUMNS], tl.float32)
    for start in range(first, last, ROWS):
        place = start + tl.arange(0, ROWS)
        row = place.to(tl.int64) if ORDERED else tl.load(order + place, place < last, other=0)
        inside = (place < last)[:, None] & (column < WIDTH)[None, :]
        values = tl.load(rows + row[:, None] * rows_stride + column[None, :], inside, other=0.0)
        total += tl.sum(values.to(tl.float32), 0)
    tl.store(out + segment * WIDTH + column, total, column < WIDTH)


@triton.jit
def squared_error_kernel(
    x, ids, codes, out, N, x_stride, codes_stride,
    WIDTH: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    code = tl.load(ids + row, row < N, other=-1)
    counted = code >= 0
    total = tl.zeros([ROWS], tl.float32)
    for begin in range(0, WIDTH, COLUMNS):
        column = begin + tl.arange(0, COLUMNS)
        inside = counted[:, None] & (column < WIDTH)[None, :]
        values = tl.load(x + row[:, None] * x_stride + column[None, :], inside, other=0.0).to(tl.float32)
        near = tl.load(codes + code[:, None] * codes_stride + column[None, :], inside, other=0.0)
        total += tl.sum((values - near) * (values - near), 1)
    tl.store(out + tl.program_id(0), tl.sum(total, 0))


def code_sums(x: Tensor, ids: Tensor, codebook_size: int) -> tuple[Tensor, Tensor]:
    """x [N, D] float, ids [N] int64 (-1: no code) -> counts [K] int64, sums [K, D] float32."""
    rows = aligned(x)
    ordered, order = ids.sort(stable=True)
    borders = torch.searchsorted(ordered, torch.arange(codebook_size + 1, device=x.device))
    counts = borders.diff()
    pieces = (counts + PIECE - 1) // PIECE
    last = pieces.cumsum(0)
    # Enough for any ids, so that no size has to come from the device.
    piece = torch.arange(len(x) // PIECE + min(len(x), codebook_size), device=x.device)
    code = torch.searchsorted(last, piece, right=True).clamp(max=codebook_size - 1)
    starts = borders[code] + (piece - (last - pieces)[code]) * PIECE
    ends = torch.minimum(starts + PIECE, borders[code + 1]).where(piece < last[-1], starts)
    partial = _segment_sum(rows, order, starts, ends)
    sums = _segment_sum(partial, None, last - pieces, last)
    return counts, sums[:, : x.shape[1]]


def _segment_sum(rows: Tensor, order: Tensor | None, starts: Tensor, ends: Tensor) -> Tensor:
    width = rows.shape[1]
    out = torch.empty(len(starts), width, device=rows.device)
    if out.numel():
        segment_sum_kernel[(len(starts), triton.cdiv(width, COLUMNS))](
            rows, starts if order is None else order, starts, ends, out, rows.stride(0),
            WIDTH=width, ORDERED=order is None, ROWS=ROWS, COLUMNS=COLUMNS, num_warps=4,
        )  # fmt: skip
    return out


def squared_error(x: Tensor, ids: Tensor, codes: Tensor) -> Tensor:
    """Sum of |x - codes[ids]|^2: x [N, D] float, ids [N] int64 (-1 adds nothing), codes [K, D] float32 -> []."""
    rows, ids, codes = aligned(x), ids.contiguous(), aligned(codes)
    blocks = triton.cdiv(len(x), ROWS)
    out = torch.empty(blocks, device=x.device)
    if blocks:
        squared_error_kernel[(blocks,)](
            rows, ids, codes, out, len(x), rows.stride(0), codes.stride(0),
            WIDTH=rows.shape[1], ROWS=ROWS, COLUMNS=COLUMNS, num_warps=4,
        )  # fmt: skip
    return out.sum()
