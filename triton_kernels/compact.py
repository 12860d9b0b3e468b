"""Rows of any numbers, copied from the places that a list names; a fill value where it names none."""

import torch
import triton
import triton.language as tl
from torch import Tensor

_BYTES = 8192  # of a tile: four loads of 16 for every thread
_WHOLE = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@triton.jit
def copy_rows_kernel(
    x, source, fill, out, rows, slots, item_stride, slot_stride, block_stride,
    BLOCKS: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    block = tl.program_id(2).to(tl.int64)
    place = tl.load(source + row, row < rows, other=-1)
    start = place // slots * item_stride + place % slots * slot_stride + block * block_stride
    inside = (row < rows)[:, None] & (column < WIDTH)[None, :]
    there = (place >= 0)[:, None]
    values = tl.load(x + start[:, None] + column[None, :], inside & there, other=0)
    values = tl.where(there, values, tl.load(fill))
    tl.store(out + (row * BLOCKS + block)[:, None] * WIDTH + column[None, :], values, inside)


def tile(width: int, size: int) -> dict[str, int]:
    """Rows and columns of a tile of numbers of `size` bytes."""
    columns = int(min(512, max(16, triton.next_power_of_2(width))))
    return {"ROWS": _BYTES // size // columns, "COLUMNS": columns}


def copy_rows(x: Tensor, source: Tensor, fill: Tensor) -> Tensor:
    """x [B, N, H, W] with neighbours in W, source [T] int64 in -1 or b * N + n, fill [1] -> [T, H, W]; bits only."""
    blocks, width = x.shape[2:]
    out = x.new_empty(len(source), blocks, width)
    if out.numel():
        shape = tile(width, x.element_size())
        grid = (triton.cdiv(len(source), shape["ROWS"]), triton.cdiv(width, shape["COLUMNS"]), blocks)
        whole = _WHOLE[x.element_size()]
        copy_rows_kernel[grid](
            x.view(whole), source.contiguous(), fill.view(whole), out.view(whole),
            len(source), max(1, x.shape[1]), *x.stride()[:3], BLOCKS=blocks, WIDTH=width, **shape, num_warps=4,
        )  # fmt: skip
    return out
