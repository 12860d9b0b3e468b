"""For every even token the odd token of largest dot product, item by item, no N x N matrix.

The lowest index wins among equal products, what is not a number never does.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import aligned, target

ROWS, PARTNERS, CHUNK = 32, 32, 32


@triton.jit
def bipartite_match_kernel(
    points, partner, product_out, EVEN, ODD, item_stride, stride,
    WIDTH: tl.constexpr, CHUNK: tl.constexpr, ROWS: tl.constexpr, PARTNERS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    item = tl.program_id(1).to(tl.int64)
    lane, chunk = tl.arange(0, PARTNERS), tl.arange(0, CHUNK)
    evens = points + item * item_stride
    odds = evens + stride
    best = tl.full([ROWS], float("-inf"), tl.float32)
    index = tl.zeros([ROWS], tl.int32)
    for start in range(0, ODD, PARTNERS):
        odd = start + lane
        product = tl.zeros([ROWS, PARTNERS], tl.float32)
        for begin in range(0, WIDTH, CHUNK):
            d = begin + chunk
            inside = d < WIDTH
            even_at = evens + row.to(tl.int64)[:, None] * 2 * stride + d[None, :]
            odd_at = odds + odd.to(tl.int64)[None, :] * 2 * stride + d[:, None]
            x = tl.load(even_at, (row < EVEN)[:, None] & inside[None, :], other=0.0)
            y = tl.load(odd_at, (odd < ODD)[None, :] & inside[:, None], other=0.0)
            product = tl.dot(x, y, product, input_precision=PRECISION)
        product = tl.where((odd < ODD)[None, :] & (product == product), product, float("-inf"))
        value, place = tl.max(product, 1, return_indices=True, return_indices_tie_break_left=True)
        wins = value > best
        best = tl.where(wins, value, best)
        index = tl.where(wins, start + place, index)
    tl.store(partner + item * EVEN + row, index.to(tl.int64), row < EVEN)
    tl.store(product_out + item * EVEN + row, best, row < EVEN)


def constants(width: int, target: str) -> dict[str, int | str]:
    """The compile-time arguments of the kernel for a width and a target such as "sm_90"."""
    # AMD has no tf32x3.
    precision = "ieee" if target.startswith("gfx") else "tf32x3"
    tile = {"CHUNK": CHUNK, "ROWS": ROWS, "PARTNERS": PARTNERS}
    return {"WIDTH": width + -width % 16, **tile, "PRECISION": precision}


def best_partners(points: Tensor) -> tuple[Tensor, Tensor]:
    """points [B, N, C] float32 -> best of the N // 2 odd tokens and its product, [B, (N + 1) // 2] int64 and float32;
    0 and -inf where no product is a number."""
    items, count, width = points.shape
    even, odd = (count + 1) // 2, count // 2
    partner = torch.zeros(items, even, dtype=torch.int64, device=points.device)
    best = torch.full(partner.shape, -torch.inf, device=points.device)
    if partner.numel() and odd and width:
        rows = aligned(points.flatten(0, 1))
        bipartite_match_kernel[(triton.cdiv(even, ROWS), items)](
            rows, partner, best, even, odd, count * rows.stride(0), rows.stride(0),
            **constants(width, target(points)), num_warps=4, num_stages=2,
        )  # fmt: skip
    return partner, best
