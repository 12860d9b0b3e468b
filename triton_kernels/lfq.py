"""Lookup-free quantization: the sign of every channel as a code and as a bit of the id, and back."""

import torch
import triton
import triton.language as tl
from torch import Tensor

TILE = 2048


@triton.jit
def lfq_kernel(
    z, codes, ids, N, magnitude,
    WIDTH: tl.constexpr, MSB: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, COLUMNS)
    place = row[:, None] * WIDTH + column[None, :]
    inside = (row < N)[:, None] & (column < WIDTH)[None, :]
    bit = tl.load(z + place, inside, other=0.0).to(tl.float32) > 0
    code = tl.where(bit, magnitude, -magnitude)
    tl.store(codes + place, code.to(codes.dtype.element_ty), inside)
    shift = tl.where(column < WIDTH, WIDTH - 1 - column if MSB else column, 0)
    tl.store(ids + row, tl.sum(bit.to(tl.int64) << shift.to(tl.int64)[None, :], 1), row < N)


@triton.jit
def lfq_unpack_kernel(
    ids, codes, N, magnitude,
    WIDTH: tl.constexpr, MSB: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, COLUMNS)
    inside = (row < N)[:, None] & (column < WIDTH)[None, :]
    id = tl.load(ids + row, row < N, other=-1)[:, None]
    shift = tl.where(column < WIDTH, WIDTH - 1 - column if MSB else column, 0)
    bit = (id >> shift.to(tl.int64)[None, :]) & 1
    code = tl.where(bit != 0, magnitude, -magnitude)
    tl.store(codes + row[:, None] * WIDTH + column[None, :], tl.where(id >= 0, code, 0.0), inside)


def quantize(z: Tensor, magnitude: float, msb: bool) -> tuple[Tensor, Tensor]:
    """z [N, D] float -> codes [N, D] of -magnitude and magnitude, ids [N] int64; msb: channel 0 is the highest bit."""
    z = z.contiguous()
    codes, ids = torch.empty_like(z), torch.empty(len(z), dtype=torch.int64, device=z.device)
    columns = triton.next_power_of_2(z.shape[1])
    rows = TILE // columns
    if len(z):
        lfq_kernel[(triton.cdiv(len(z), rows),)](
            z, codes, ids, len(z), magnitude, WIDTH=z.shape[1], MSB=msb, ROWS=rows, COLUMNS=columns, num_warps=4
        )
    return codes, ids


def unpack(ids: Tensor, width: int, magnitude: float, msb: bool) -> Tensor:
    """ids [N] int64 (-1: no code) -> codes [N, width] float32 of -magnitude and magnitude."""
    ids = ids.contiguous()
    codes = torch.empty(len(ids), width, device=ids.device)
    columns = triton.next_power_of_2(width)
    rows = TILE // columns
    if len(ids):
        lfq_unpack_kernel[(triton.cdiv(len(ids), rows),)](
            ids, codes, len(ids), magnitude, WIDTH=width, MSB=msb, ROWS=rows, COLUMNS=columns, num_warps=4
        )
    return codes
