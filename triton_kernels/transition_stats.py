"""|a|^2, |b|^2 and a.b of pairs of rows: one read of both, sums in registers until the end of the row."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import aligned

_CELLS = 2048


@triton.jit
def transition_stats_kernel(
    a, b, a_squared, b_squared, dot, N, a_stride, b_stride,
    WIDTH: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    xx = tl.zeros([ROWS, COLUMNS], tl.float32)
    yy = tl.zeros([ROWS, COLUMNS], tl.float32)
    xy = tl.zeros([ROWS, COLUMNS], tl.float32)
    for begin in range(0, WIDTH, COLUMNS):
        column = begin + tl.arange(0, COLUMNS)
        inside = (row < N)[:, None] & (column < WIDTH)[None, :]
        x = tl.load(a + row[:, None] * a_stride + column[None, :], inside, other=0.0).to(tl.float32)
        y = tl.load(b + row[:, None] * b_stride + column[None, :], inside, other=0.0).to(tl.float32)
        xx += x * x
        yy += y * y
        xy += x * y
    tl.store(a_squared + row, tl.sum(xx, 1), row < N)
    tl.store(b_squared + row, tl.sum(yy, 1), row < N)
    tl.store(dot + row, tl.sum(xy, 1), row < N)


def tile(width: int) -> dict[str, int]:
    """Rows and columns of a tile, of which every thread holds 16 numbers: enough for 16-byte loads at any width."""
    columns = int(min(512, max(16, triton.next_power_of_2(width))))
    return {"ROWS": _CELLS // columns, "COLUMNS": columns}


def stats(a: Tensor, b: Tensor) -> tuple[Tensor, ...]:
    """a, b [N, D] float -> |a|^2, |b|^2, a.b [N] float32."""
    a, b = aligned(a), aligned(b)
    out = tuple(torch.empty(len(a), device=a.device) for _ in range(3))
    if len(a):
        shape = tile(a.shape[1])
        transition_stats_kernel[(triton.cdiv(len(a), shape["ROWS"]),)](
            a, b, *out, len(a), a.stride(0), b.stride(0), WIDTH=a.shape[1], **shape, num_warps=4,
        )  # fmt: skip
    return out
