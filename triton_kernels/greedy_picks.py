"""Tokens picked one after the other: what the launchers of k_center and max_sum share.

Most often a kernel compares all pairs of tokens once, and one program per item picks, with a value per token in
registers: a step reads one row of the pair matrix. Where an item has many tokens for few picks, a launch per step
compares all tokens with the last pick instead. Equal values give way to the lowest index.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import target

TILE, SWEPT, SWEPT_CHUNK, SWEPT_PARTS = 64, 64, 64, 1024
DIFFERENCES_TO = 64
_MATRIX_NUMBERS, _MATRIX_TOKENS = 1 << 28, 16384


@triton.jit
def pair_kernel(
    points, squares, out, N,
    WIDTH: tl.constexpr, CHUNK: tl.constexpr, TILE: tl.constexpr, PRECISION: tl.constexpr, COMPARE: tl.constexpr,
):  # fmt: skip
    item = tl.program_id(2).to(tl.int64) * N
    i = tl.program_id(1) * TILE + tl.arange(0, TILE)
    j = tl.program_id(0) * TILE + tl.arange(0, TILE)
    left = points + (item + i)[:, None] * WIDTH
    right = points + (item + j)[:, None] * WIDTH
    found = tl.zeros([TILE, TILE], tl.float32)
    if COMPARE == "differences":
        for d in range(WIDTH):
            one = tl.load(points + (item + i) * WIDTH + d, i < N, other=0.0)
            other = tl.load(points + (item + j) * WIDTH + d, j < N, other=0.0)
            difference = one[:, None] - other[None, :]
            found += difference * difference
    else:
        chunk = tl.arange(0, CHUNK)
        for begin in range(0, WIDTH, CHUNK):
            d = begin + chunk[None, :]
            one = tl.load(left + d, (i < N)[:, None] & (d < WIDTH), other=0.0)
            other = tl.load(right + d, (j < N)[:, None] & (d < WIDTH), other=0.0)
            found = tl.dot(one, tl.trans(other), found, input_precision=PRECISION)
        if COMPARE == "distances":
            one = tl.load(squares + item + i, i < N, other=0.0)
            other = tl.load(squares + item + j, j < N, other=0.0)
            found = one[:, None] + other[None, :] - 2.0 * found
            # Only an overflow makes a distance that is not a number.
            found = tl.where(found == found, tl.maximum(found, 0.0), float("inf"))
    inside = (i < N)[:, None] & (j < N)[None, :]
    tl.store(out + (item + i)[:, None] * N + j[None, :], found, inside)


@triton.jit
def _beside_one_more(value, compared, NEAREST: tl.constexpr):
    return tl.minimum(value, compared) if NEAREST else value - compared


@triton.jit
def pick_kernel(matrix, values, start, index_out, value_out, N, k, BLOCK: tl.constexpr, NEAREST: tl.constexpr):
    item = tl.program_id(0).to(tl.int64)
    token = tl.arange(0, BLOCK)
    value = tl.load(values + item * N + token, token < N, other=float("-inf"))
    last = tl.load(start + item)
    best = tl.max(tl.where(token == last, value, float("-inf")), 0)
    for step in range(k):
        tl.store(index_out + item * k + step, last)
        tl.store(value_out + item * k + step, best)
        value = tl.where(token == last, float("-inf"), value)
        row = tl.load(matrix + (item * N + last) * N + token, token < N, other=0.0)
        value = _beside_one_more(value, row, NEAREST)
        best, place = tl.max(value, 0, return_indices=True, return_indices_tie_break_left=True)
        last = tl.where(best > float("-inf"), place.to(tl.int64), last)


@triton.jit
def sweep_kernel(
    points, values, best_in, place_in, best_out, place_out, index_out, value_out, N, k, step, tiles,
    WIDTH: tl.constexpr, CHUNK: tl.constexpr, TILE: tl.constexpr, PARTS: tl.constexpr, NEAREST: tl.constexpr,
):  # fmt: skip
    tile = tl.program_id(0)
    item = tl.program_id(1).to(tl.int64)
    part = tl.arange(0, PARTS)
    best = float("-inf")
    last = tl.load(index_out + item * k + tl.maximum(step - 1, 0))
    for begin in range(0, tiles, PARTS):
        there = begin + part < tiles
        offers = tl.load(best_in + item * tiles + begin + part, there, other=float("-inf"))
        offer, where = tl.max(offers, 0, return_indices=True, return_indices_tie_break_left=True)
        place = tl.load(place_in + item * tiles + begin + where)
        last = tl.where(offer > best, place, last)
        best = tl.maximum(best, offer)
    if tile == 0:
        tl.store(index_out + item * k + step, last)
        tl.store(value_out + item * k + step, best)
    token = tile * TILE + tl.arange(0, TILE)
    value = tl.load(values + item * N + token, token < N, other=float("-inf"))
    rows = points + (item * N + token)[:, None] * WIDTH
    compared = tl.zeros([TILE], tl.float32)
    for begin in range(0, WIDTH, CHUNK):
        d = begin + tl.arange(0, CHUNK)
        one = tl.load(points + (item * N + last) * WIDTH + d, d < WIDTH, other=0.0)
        other = tl.load(rows + d[None, :], (token < N)[:, None] & (d < WIDTH)[None, :], other=0.0)
        if NEAREST:
            compared += tl.sum((other - one[None, :]) * (other - one[None, :]), 1)
        else:
            compared += tl.sum(other * one[None, :], 1)
    value = _beside_one_more(tl.where(token == last, float("-inf"), value), compared, NEAREST)
    tl.store(values + item * N + token, value, token < N)
    offer, where = tl.max(value, 0, return_indices=True, return_indices_tie_break_left=True)
    tl.store(best_out + item * tiles + tile, offer)
    tl.store(place_out + item * tiles + tile, (tile * TILE + where).to(tl.int64))


def pick(points: Tensor, values: Tensor, start: Tensor, k: int, nearest: bool) -> tuple[Tensor, Tensor]:
    """points [B, N, D] and values [B, N] float32, start [B] int64 -> picks and their values [B, k].

    The token of largest value is picked. Then values become the least distance to any pick (`nearest`), or lose the
    product with the pick. A token of value -inf is none; an item without one repeats its last pick with value -inf.
    """
    batch, count, width = points.shape
    index = torch.zeros(batch, k, dtype=torch.int64, device=points.device)
    found = torch.full((batch, k), -torch.inf, device=points.device)
    if not found.numel() or not count:
        return index, found
    # Multiples of 16, which vector loads need; nothing past the end can be picked.
    points = torch.nn.functional.pad(points, (0, -width % 16 or 16 * (width == 0), 0, -count % 16)).contiguous()
    values = torch.nn.functional.pad(values, (0, -count % 16), value=-torch.inf).contiguous()
    if sweeps(count, k):
        _sweep(points, values, start, index, found, nearest)
        return index, found
    items = max(1, _MATRIX_NUMBERS // values.shape[1] ** 2)
    for first in range(0, batch, items):
        some = slice(first, first + items)
        _pick_from_pairs(points[some], values[some], start[some], index[some], found[some], nearest)
    return index, found


def sweeps(count: int, k: int) -> bool:
    """Whether comparing all pairs of `count` tokens takes too much memory, or too long for k picks."""
    return count > _MATRIX_TOKENS or 64 * k < count


def _pick_from_pairs(
    points: Tensor, values: Tensor, start: Tensor, index: Tensor, found: Tensor, nearest: bool
) -> None:
    batch, count, width = points.shape
    matrix = torch.empty(batch, count, count, device=points.device)
    squares = torch.linalg.vector_norm(points, dim=2, dtype=torch.float64).square().float()
    settings, tiles = pair_settings(width, nearest, target(points)), triton.cdiv(count, TILE)
    pair_kernel[(tiles, tiles, batch)](
        points, squares, matrix, count, **settings, num_warps=4, num_stages=pair_stages(target(points))
    )
    block = max(16, triton.next_power_of_2(count))
    pick_kernel[(batch,)](
        matrix, values, start, index, found, count, index.shape[1], BLOCK=block, NEAREST=nearest,
        num_warps=pick_warps(block),
    )  # fmt: skip


def pair_settings(width: int, nearest: bool, target: str) -> dict[str, int | str]:
    """Compile-time arguments of the pair kernel. Narrow tokens are subtracted, which loses nothing to cancellation."""
    compare = "products" if not nearest else "differences" if width <= DIFFERENCES_TO else "distances"
    precision = "ieee" if target.startswith("gfx") else "tf32x3"
    return {"WIDTH": width, "CHUNK": 16 if width % 32 else 32, "TILE": TILE, "PRECISION": precision, "COMPARE": compare}


def pair_stages(target: str) -> int:
    """Pipeline stages of the pair kernel."""
    return 2 if target.startswith("gfx") else 3


def pick_warps(block: int) -> int:
    """Warps of the pick kernel for a row of `block` values."""
    return 4 if block <= 1024 else 8 if block <= 2048 else 16


def _sweep(points: Tensor, values: Tensor, start: Tensor, index: Tensor, found: Tensor, nearest: bool) -> None:
    batch, count, width = points.shape
    tiles = triton.cdiv(count, SWEPT)
    best = [torch.full((batch, tiles), -torch.inf, device=points.device) for _ in range(2)]
    place = [torch.zeros(batch, tiles, dtype=torch.int64, device=points.device) for _ in range(2)]
    # The first launch finds the start in the place of a sweep's best token.
    best[0][:, 0] = values.gather(1, start[:, None])[:, 0]
    place[0][:, 0] = start
    for step in range(index.shape[1]):
        now, then = step % 2, (step + 1) % 2
        sweep_kernel[(tiles, batch)](
            points, values, best[now], place[now], best[then], place[then], index, found, count, index.shape[1], step,
            tiles, WIDTH=width, CHUNK=SWEPT_CHUNK, TILE=SWEPT, PARTS=SWEPT_PARTS, NEAREST=nearest, num_warps=4,
        )  # fmt: skip
