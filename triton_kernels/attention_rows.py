"""Attention weights of a few query rows: the normaliser of every row, then the sum of weights of every key.

Both passes multiply the rows of all heads that share a key head with a tile of keys at once, so keys are read once per
pass. The first one splits keys over programs, the second one gives every program the rows' weights of its own keys.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import aligned, processors, target


class Visible(NamedTuple):
    """Key j is visible to row s of item b iff j <= last [B, S] int64 and allowed [B, N] bool."""

    last: Tensor
    allowed: Tensor


class Config(NamedTuple):
    """Query rows, keys and width of a tile, warps and pipeline stages."""

    rows: int
    keys: int
    chunk: int
    warps: int
    stages: int


def config(rows: int, width: int, dtype: torch.dtype, target: str) -> Config:
    """Tile sizes for a number of query rows per key head, a width and a target such as "sm_90"."""
    amd = target.startswith("gfx")
    # tf32x3 forms three products in place of one, and needs registers for them.
    thrice = dtype == torch.float32 and not amd
    most = 32 if thrice else 64
    chunk = min(32 if thrice else 64, max(16, triton.next_power_of_2(width)))
    return Config(16 if rows <= 16 else most, 64, chunk, 4, 2 if thrice or amd else 3)


@triton.jit
def _scores(
    q_rows, k_columns, row_inside, key_inside, scale,
    WIDTH: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr, CHUNK: tl.constexpr,
    PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    score = tl.zeros([ROWS, KEYS], tl.float32)
    for begin in range(0, WIDTH, CHUNK):
        d = begin + tl.arange(0, CHUNK)
        x_inside, y_inside = row_inside[:, None], key_inside[None, :]
        if WIDTH % CHUNK != 0:
            x_inside, y_inside = x_inside & (d < WIDTH)[None, :], y_inside & (d < WIDTH)[:, None]
        x = tl.load(q_rows + d[None, :], x_inside, other=0.0)
        y = tl.load(k_columns + d[:, None], y_inside, other=0.0)
        if UPCAST:  # the interpreter cannot compute in bfloat16; its values are exact in float32
            x, y = x.to(tl.float32), y.to(tl.float32)
        score = tl.dot(x, y, score, input_precision=PRECISION)
    return score * scale


@triton.jit
def _place(allowed, key, there):
    """Where a key stands, or behind every row's limit if it is not allowed: one comparison then tells who sees it."""
    return tl.where(tl.load(allowed + key, there, other=0) != 0, key, 2147483647)


@triton.jit
def row_lse_kernel(
    q, k, last, allowed, out, scale, G, S, N, Q, q_stride, item_stride, group_stride, key_stride, keys_per_split,
    WIDTH: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr, CHUNK: tl.constexpr,
    PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Q query rows per key head -> out [B, G, splits, Q]: lse over the keys of each split."""
    head = tl.program_id(0).to(tl.int64)
    item, group = head // G, head % G
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    inside = row < Q
    limit = tl.load(last + item * S + row % S, inside, other=-1).to(tl.int32)
    best = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    first = tl.program_id(2) * keys_per_split
    stop = tl.minimum(first + keys_per_split, N)
    for start in range(first, stop, KEYS):
        key = start + tl.arange(0, KEYS)
        there = key < stop
        score = _scores(
            q + (head * Q + row)[:, None] * q_stride,
            k + item * item_stride + group * group_stride + key.to(tl.int64)[None, :] * key_stride,
            inside, there, scale, WIDTH, ROWS, KEYS, CHUNK, PRECISION, UPCAST,
        )  # fmt: skip
        place = _place(allowed + item * N, key, there)
        score = tl.where(place[None, :] <= limit[:, None], score, float("-inf"))
        top = tl.maximum(best, tl.max(score, 1))
        shift = tl.where(top == float("-inf"), 0.0, top)
        total = total * tl.exp(best - shift) + tl.sum(tl.exp(score - shift[:, None]), 1)
        best = top
    found = tl.where(total == 0.0, float("-inf"), best + tl.log(tl.where(total == 0.0, 1.0, total)))
    tl.store(out + (head * tl.num_programs(2) + tl.program_id(2)) * Q + row, found, inside)


@triton.jit
def column_sum_kernel(
    q, k, last, allowed, lse, out, weights, scale,
    G, S, N, Q, q_stride, item_stride, group_stride, key_stride, first, C,
    WIDTH: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr, CHUNK: tl.constexpr,
    PRECISION: tl.constexpr, UPCAST: tl.constexpr, WEIGHTS: tl.constexpr,
):  # fmt: skip
    """lse [B, G, Q] -> out [B, G, C]: weights of keys first..first+C-1, summed over rows; weights [B, G, Q, C]."""
    head = tl.program_id(0).to(tl.int64)
    item, group = head // G, head % G
    column = tl.program_id(1) * KEYS + tl.arange(0, KEYS)
    there = column < C
    key = first + column
    k_columns = k + item * item_stride + group * group_stride + key.to(tl.int64)[None, :] * key_stride
    place = _place(allowed + item * N, key, there)
    total = tl.zeros([KEYS], tl.float32)
    for start in range(0, Q, ROWS):
        row = start + tl.arange(0, ROWS)
        inside = row < Q
        limit = tl.load(last + item * S + row % S, inside, other=-1).to(tl.int32)
        norm = tl.load(lse + head * Q + row, inside, other=0.0)
        score = _scores(
            q + (head * Q + row)[:, None] * q_stride, k_columns,
            inside, there, scale, WIDTH, ROWS, KEYS, CHUNK, PRECISION, UPCAST,
        )  # fmt: skip
        seen = place[None, :] <= limit[:, None]
        weight = tl.exp(tl.where(seen, score - norm[:, None], float("-inf")))
        total += tl.sum(weight, 0)
        if WEIGHTS:
            cells = weights + (head * Q + row)[:, None] * C + column[None, :]
            tl.store(cells, weight, inside[:, None] & there[None, :])
    tl.store(out + head * C + column, total, there)


def constants(rows: int, width: int, dtype: torch.dtype, target: str, interpreted: bool = False) -> dict[str, object]:
    """The compile-time arguments that both kernels share. AMD has no tf32x3."""
    tile = config(rows, width, dtype, target)
    return {
        "WIDTH": width + -width % 16,
        "ROWS": tile.rows,
        "KEYS": tile.keys,
        "CHUNK": tile.chunk,
        "PRECISION": "tf32x3" if dtype == torch.float32 and not target.startswith("gfx") else "ieee",
        "UPCAST": interpreted,
    }


class _Launch(NamedTuple):
    """What both launches pass: tensors that vector loads can read, then sizes and strides, then compile-time values."""

    tensors: tuple[Tensor, ...]
    sizes: tuple[int, ...]
    options: dict[str, object]
    tile: Config


def row_lse(q: Tensor, k: Tensor, visible: Visible, scale: float) -> Tensor:
    """q [B, H, S, D], k [B, G, N, D] -> [B, H, S] float32: log of the sum of exp(scale q.k) over visible keys."""
    heads, rows, keys = q.shape[0] * k.shape[1], q.shape[1] // k.shape[1] * q.shape[2], k.shape[2]
    if not (heads and rows and keys):
        return torch.full(q.shape[:3], -torch.inf, device=q.device)
    launch = _prepare(q, k, visible)
    row_tiles, key_tiles = triton.cdiv(rows, launch.tile.rows), triton.cdiv(keys, launch.tile.keys)
    splits = min(key_tiles, max(1, 2 * processors(q) // (heads * row_tiles)))
    per_split = triton.cdiv(key_tiles, splits) * launch.tile.keys
    splits = triton.cdiv(keys, per_split)
    partial = torch.empty(heads, splits, rows, device=q.device)
    row_lse_kernel[(heads, row_tiles, splits)](
        *launch.tensors, partial, scale, *launch.sizes, per_split, **launch.options
    )
    return (partial.logsumexp(1) if splits > 1 else partial).reshape(q.shape[:3])


def column_sums(
    q: Tensor, k: Tensor, visible: Visible, lse: Tensor, scale: float, first: int, stop: int, return_weights: bool
) -> tuple[Tensor, Tensor]:
    """lse [B, H, S] -> sums over heads and rows [B, C] float32, and the weights [B, H, S, C] ([0] if not asked for)."""
    columns, groups = stop - first, k.shape[1]
    weights = torch.empty((*q.shape[:3], columns) if return_weights else (0,), device=q.device)
    if not (columns and q.numel()):
        return torch.zeros(len(q), columns, device=q.device), weights
    launch = _prepare(q, k, visible)
    partial = torch.empty(len(q), groups, columns, device=q.device)
    grid = (len(q) * groups, triton.cdiv(columns, launch.tile.keys))
    column_sum_kernel[grid](
        *launch.tensors, lse.contiguous(), partial, weights, scale, *launch.sizes, first, columns,
        **launch.options, WEIGHTS=return_weights,
    )  # fmt: skip
    return partial.sum(1), weights


def _prepare(q: Tensor, k: Tensor, visible: Visible) -> _Launch:
    kind = torch.promote_types(q.dtype, k.dtype)
    rows, keys = aligned(q.to(kind).reshape(-1, q.shape[3])), _aligned_keys(k.to(kind))
    per_group = q.shape[1] // k.shape[1] * q.shape[2]
    tile = config(per_group, q.shape[3], kind, target(q))
    shared = constants(per_group, q.shape[3], kind, target(q), interpreted=not q.is_cuda)
    tensors = (rows, keys, visible.last, visible.allowed.contiguous())
    sizes = (k.shape[1], q.shape[2], k.shape[2], per_group, rows.stride(0), *keys.stride()[:3])
    return _Launch(tensors, sizes, {**shared, "num_warps": tile.warps, "num_stages": tile.stages}, tile)


def _aligned_keys(k: Tensor) -> Tensor:
    """k [B, G, N, D], if vector loads can read its heads where they lie, or a copy padded to a multiple of 16."""
    spare = -k.shape[3] % 16
    if not spare and k.stride(3) == 1 and not any(step % 16 for step in k.stride()[:3]) and k.data_ptr() % 16 == 0:
        return k
    return torch.nn.functional.pad(k, (0, spare)).clone(memory_format=torch.contiguous_format)
