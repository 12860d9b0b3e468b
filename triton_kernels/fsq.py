"""Finite scalar quantization: the digits of a row by binary search among the borders of its channels, and back."""

import torch
import triton
import triton.language as tl
from torch import Tensor

TILE = 2048


@triton.jit
def fsq_kernel(
    z, borders, levels, places, codes, ids, N,
    WIDTH: tl.constexpr, STEPS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, COLUMNS)
    place = row[:, None] * WIDTH + column[None, :]
    inside = (row < N)[:, None] & (column < WIDTH)[None, :]
    value = tl.load(z + place, inside, other=0.0).to(tl.float32)
    digit = tl.zeros([ROWS, COLUMNS], tl.int32)
    for step in tl.static_range(STEPS):
        half = 1 << (STEPS - 1 - step)
        border = tl.load(borders + (column << STEPS)[None, :] + digit + (half - 1), inside, other=0.0)
        digit += tl.where(value > border, half, 0)
    scale = (tl.load(levels + column, column < WIDTH, other=2) // 2).to(tl.int32)[None, :]
    code = tl.div_rn((digit - scale).to(tl.float32), scale.to(tl.float32))
    tl.store(codes + place, code.to(codes.dtype.element_ty), inside)
    worth = tl.load(places + column, column < WIDTH, other=0)
    tl.store(ids + row, tl.sum(digit * worth[None, :], 1), row < N)


@triton.jit
def fsq_backward_kernel(gradient, z, shift, slope, out, count, WIDTH: tl.constexpr, TILE: tl.constexpr):
    place = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    inside = place < count
    column = place % WIDTH
    x = tl.load(z + place, inside, other=0.0).to(tl.float32) + tl.load(shift + column)
    # 1 - tanh(x)^2 without cancellation.
    decay = tl.exp(-2.0 * tl.abs(x))
    steepness = 4.0 * decay / ((1.0 + decay) * (1.0 + decay))
    found = tl.load(gradient + place, inside, other=0.0).to(tl.float32) * tl.load(slope + column) * steepness
    tl.store(out + place, found.to(out.dtype.element_ty), inside)


@triton.jit
def fsq_unpack_kernel(
    ids, levels, places, codes, N,
    WIDTH: tl.constexpr, WIDE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, COLUMNS)
    inside = (row < N)[:, None] & (column < WIDTH)[None, :]
    id = tl.load(ids + row, row < N, other=-1)
    known = (id >= 0)[:, None]
    left = tl.maximum(id, 0)[:, None]
    worth = tl.load(places + column, column < WIDTH, other=1)[None, :]
    level = tl.load(levels + column, column < WIDTH, other=2)[None, :]
    # Division of 64-bit numbers costs several times that of 32-bit ones.
    if not WIDE:
        left, worth, level = left.to(tl.int32), worth.to(tl.int32), level.to(tl.int32)
    digit = ((left // worth) % level).to(tl.int32)
    scale = (level // 2).to(tl.int32)
    code = tl.div_rn((digit - scale).to(tl.float32), scale.to(tl.float32))
    tl.store(codes + row[:, None] * WIDTH + column[None, :], tl.where(known, code, 0.0), inside)


def quantize(z: Tensor, borders: Tensor, levels: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
    """z [N, D] float, borders [D, 2^S] float32 up to +inf, levels, places [D] int64 -> codes [N, D], ids [N] int64."""
    z = z.contiguous()
    codes, ids = torch.empty_like(z), torch.empty(len(z), dtype=torch.int64, device=z.device)
    columns = triton.next_power_of_2(z.shape[1])
    rows = TILE // columns
    if len(z):
        fsq_kernel[(triton.cdiv(len(z), rows),)](
            z, borders, levels, places, codes, ids, len(z),
            WIDTH=z.shape[1], STEPS=borders.shape[1].bit_length() - 1, ROWS=rows, COLUMNS=columns, num_warps=4,
        )  # fmt: skip
    return codes, ids


def slopes(gradient: Tensor, z: Tensor, shift: Tensor, slope: Tensor) -> Tensor:
    """gradient, z [N, D] float, shift, slope [D] float32 -> gradient slope (1 - tanh(z + shift)^2), as z."""
    gradient, z = gradient.contiguous(), z.contiguous()
    out = torch.empty_like(z)
    if z.numel():
        fsq_backward_kernel[(triton.cdiv(z.numel(), TILE),)](
            gradient, z, shift, slope, out, z.numel(), WIDTH=z.shape[1], TILE=TILE, num_warps=4
        )
    return out


def unpack(ids: Tensor, levels: Tensor, places: Tensor, codebook_size: int) -> Tensor:
    """ids [N] int64 (-1: no code), levels, places [D] int64 -> codes [N, D] float32."""
    ids = ids.contiguous()
    codes = torch.empty(len(ids), len(levels), device=ids.device)
    columns = triton.next_power_of_2(len(levels))
    rows = TILE // columns
    if len(ids):
        fsq_unpack_kernel[(triton.cdiv(len(ids), rows),)](
            ids, levels, places, codes, len(ids),
            WIDTH=len(levels), WIDE=codebook_size > 1 << 31, ROWS=rows, COLUMNS=columns, num_warps=4,
        )  # fmt: skip
    return codes
