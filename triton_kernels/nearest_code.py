"""Nearest code: scores of a tile of rows and a tile of codes in registers, running best per row, no N x K matrix.

score = (x - centre) . code + bias; the lowest index wins among equal scores, what is not a number never does, a row
that is not finite gets 0. Where there are few row tiles, programs share the codes and are compared afterwards.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import aligned, processors, target


class Config(NamedTuple):
    """Tile sizes: rows and codes of a tile, chunk of the width (0: all of it at once), warps, pipeline stages."""

    rows: int
    codes: int
    chunk: int
    warps: int
    stages: int


def config(precision: str, width: int, target: str) -> Config:
    """Tile sizes for a precision ("exact", "fast", "bf16", "certified"), a width and a target such as "sm_90"."""
    padded = max(16, triton.next_power_of_2(width))
    stages = 2 if target.startswith("gfx") else 3
    if precision == "bf16":
        if padded <= 128:
            return Config(128, 64, 0, 4, stages)
        return Config(128, 64, 64, 8, stages)
    if precision == "fast":
        return Config(128, 64, 0, 4, stages) if padded <= 64 else Config(64, 64, 32, 4, stages)
    if precision == "exact" and not target.startswith("gfx"):
        return Config(64, 64, 0, 4, 2) if padded <= 32 else Config(64, 64, 32, 4, 2)
    return Config(64, 32, 16, 4, 2)


def input_precision(precision: str, target: str) -> str:
    """How `tl.dot` multiplies float32: AMD has no tf32x3, and certified bounds hold for IEEE arithmetic only."""
    if precision == "certified" or (precision == "exact" and target.startswith("gfx")):
        return "ieee"
    return "tf32x3" if precision == "exact" else "tf32"


@triton.jit
def _finite(x, strangers):
    """x with 0 for what is not finite, and how many there were in every row so far."""
    usable = tl.abs(x) < float("inf")
    return tl.where(usable, x, 0.0), strangers + tl.sum(1 - usable.to(tl.int32), 1)


@triton.jit
def _operand(x, BF16: tl.constexpr, UPCAST: tl.constexpr):
    if BF16:
        x = x.to(tl.bfloat16)
        # The interpreter cannot compute in bfloat16; its values are exact in float32.
        if UPCAST:
            x = x.to(tl.float32)
    return x


@triton.jit
def nearest_code_kernel(
    x, codes, bias, centre, index_out, best_out, second_out,
    N, K, x_stride, codes_stride, codes_per_split,
    WIDTH: tl.constexpr, CHUNK: tl.constexpr, ROWS: tl.constexpr, CODES: tl.constexpr,
    PRECISION: tl.constexpr, BF16: tl.constexpr, UPCAST: tl.constexpr, SECOND: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    split = tl.program_id(1)
    inside = row < N
    lane = tl.arange(0, CODES)
    chunk = tl.arange(0, CHUNK)
    best = tl.full([ROWS], float("-inf"), tl.float32)
    second = tl.full([ROWS], float("-inf"), tl.float32)
    index = tl.zeros([ROWS], tl.int32)
    strangers = tl.zeros([ROWS], tl.int32)
    x_rows = x + row[:, None] * x_stride
    if CHUNK >= WIDTH:
        keep = chunk < WIDTH
        tile = tl.load(x_rows + chunk[None, :], inside[:, None] & keep[None, :], other=0.0).to(tl.float32)
        tile, strangers = _finite(tile, strangers)
        tile = _operand(tile - tl.load(centre + chunk, keep, other=0.0)[None, :], BF16, UPCAST)
    first = split * codes_per_split
    last = tl.minimum(first + codes_per_split, K)
    for start in range(first, last, CODES):
        code = start + lane
        there = code < last
        code_rows = codes + code.to(tl.int64)[None, :] * codes_stride
        score = tl.zeros([ROWS, CODES], tl.float32)
        if CHUNK >= WIDTH:
            values = tl.load(code_rows + chunk[:, None], there[None, :] & keep[:, None], other=0.0)
            score = tl.dot(tile, _operand(values, BF16, UPCAST), score, input_precision=PRECISION)
        else:
            for begin in range(0, WIDTH, CHUNK):
                d = begin + chunk
                keep = d < WIDTH
                piece = tl.load(x_rows + d[None, :], inside[:, None] & keep[None, :], other=0.0).to(tl.float32)
                piece, strangers = _finite(piece, strangers)
                piece = _operand(piece - tl.load(centre + d, keep, other=0.0)[None, :], BF16, UPCAST)
                values = tl.load(code_rows + d[:, None], there[None, :] & keep[:, None], other=0.0)
                score = tl.dot(piece, _operand(values, BF16, UPCAST), score, input_precision=PRECISION)
        score += tl.load(bias + code, there, other=float("-inf"))[None, :]
        score = tl.where(score == score, score, float("-inf"))
        value, place = tl.max(score, 1, return_indices=True, return_indices_tie_break_left=True)
        if SECOND:
            others = tl.max(tl.where(lane[None, :] == place[:, None], float("-inf"), score), 1)
            second = tl.maximum(tl.maximum(second, others), tl.minimum(best, value))
        wins = value > best
        best = tl.where(wins, value, best)
        index = tl.where(wins, start + place, index)
    index = tl.where(strangers == 0, index, 0)
    out = split.to(tl.int64) * N + row
    tl.store(index_out + out, index, inside)
    tl.store(best_out + out, best, inside)
    if SECOND:
        tl.store(second_out + out, second, inside)


def search(x: Tensor, codes: Tensor, bias: Tensor, centre: Tensor, precision: str) -> Tensor:
    """x [N, D] float, codes [K, D], bias [K], centre [D] float32; "exact", "fast" or "bf16" -> index [N] int64."""
    return _launch(x, codes, bias, centre, precision)[0]


def search_two(x: Tensor, codes: Tensor, bias: Tensor, centre: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The same in IEEE float32: index [N] int64, largest score [N] and the second largest [N] float32."""
    return _launch(x, codes, bias, centre, "certified")


def _launch(x: Tensor, codes: Tensor, bias: Tensor, centre: Tensor, precision: str) -> tuple[Tensor, Tensor, Tensor]:
    count, width = x.shape
    x, codes = aligned(x), aligned(codes.to(torch.bfloat16 if precision == "bf16" else torch.float32))
    centre = torch.nn.functional.pad(centre, (0, x.shape[1] - width))
    arch = target(x)
    tile = config(precision, width, arch)
    row_tiles, code_tiles = triton.cdiv(count, tile.rows), triton.cdiv(len(codes), tile.codes)
    splits = min(code_tiles, max(1, 2 * processors(x) // max(1, row_tiles)))
    per_split = triton.cdiv(code_tiles, splits) * tile.codes
    splits = triton.cdiv(len(codes), per_split)
    index = torch.zeros(splits, count, dtype=torch.int32, device=x.device)
    best, second = (torch.full((splits, count), -torch.inf, device=x.device) for _ in range(2))
    if count:
        nearest_code_kernel[(row_tiles, splits)](
            x, codes, bias, centre, index, best, second,
            count, len(codes), x.stride(0), codes.stride(0), per_split,
            **constants(precision, width, arch, interpreted=not x.is_cuda),
            num_warps=tile.warps, num_stages=tile.stages,
        )  # fmt: skip
    return _best_split(index, best, second)


def constants(precision: str, width: int, target: str, interpreted: bool = False) -> dict[str, int | str | bool]:
    """The compile-time arguments of the kernel."""
    tile = config(precision, width, target)
    return {
        "WIDTH": width + -width % 16,
        "CHUNK": tile.chunk or max(16, triton.next_power_of_2(width)),
        "ROWS": tile.rows,
        "CODES": tile.codes,
        "PRECISION": input_precision(precision, target),
        "BF16": precision == "bf16",
        "UPCAST": interpreted,
        "SECOND": precision == "certified",
    }


def _best_split(index: Tensor, best: Tensor, second: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """index, best, second [splits, N] -> [N] each. Indices ascend over splits: of equal scores the lowest wins."""
    if len(index) == 1:
        return index[0].long(), best[0], second[0]
    top = best.amax(0)
    lowest = torch.where(best == top, index, torch.iinfo(torch.int32).max).amin(0)
    runners = torch.cat([best, second]).topk(2, dim=0).values
    return lowest.long(), top, runners[1]
