"""Finite scalar quantization: round every channel to a few levels, pack the digits into one id (arXiv:2309.15505).

h = (L-1)(1+eps)/2, o = 1/2 if L is even else 0, s = atanh(o/h);  b = tanh(z+s) h - o;  code = round(b) / floor(L/2)
id = sum_i digit_i prod_{j<i} L_j with digit_i = round(b_i) + floor(L_i/2): channel 0 varies fastest. D channels.

tanh grows, so digit_i is the number of borders atanh((m + 1/2 - floor(L/2) + o) / h) - s, m = 0..L-2, that lie below
z_i. Every back end compares with the same borders and computes no tanh, which libraries and processors round each in
their own way: ids are those of exact arithmetic everywhere. NaN lies above no border.
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vistok.ops.check_ids import check_ids
from vistok.ops.cpu import library
from vistok.ops.dispatch import ANY_FLOAT, SINGLE, Backend, run
from vistok.ops.registration import define_op

_EPS = 1e-3
_MOST_LEVELS = 1 << 16
# From here on a binary search beats counting borders one by one.
_FEW_LEVELS = 128

Levels = tuple[int, ...]


def fsq(z: Tensor, levels: Sequence[int], *, backend: str | None = None) -> tuple[Tensor, Tensor]:
    """Codes [..., D] in [-1, 1] and ids [...] int64 of z [..., D] float; codes have the dtype of z.

    levels: D numbers >= 2. Gradients pass straight through the rounding, to b and from there to z. A float32 tensor
    and the same numbers in float64 get the same ids.
    backend: "reference", "cpu" or "triton" instead of the one that `vistok.ops.explain` names.

    Raises: ValueError if z is not [..., D] float, the back end cannot run, or `check_levels` refuses the levels.
    """
    check_levels(levels)
    if not z.is_floating_point() or z.ndim < 1 or z.shape[-1] != len(levels):
        raise ValueError(f"fsq: expected float vectors [..., {len(levels)}], got {list(z.shape)} {z.dtype}")
    codes, ids = _op(z, list(levels), backend or "")
    return codes, ids


def fsq_unpack(indices: Tensor, levels: Sequence[int], *, backend: str | None = None) -> Tensor:
    """Codes [..., D] float32 of ids [...] int64 that `fsq` gave for these levels; zeros where the id is -1.

    Raises: ValueError for other ids, if the back end cannot run, or `check_levels` refuses the levels.
    """
    check_levels(levels)
    codes: Tensor = _unpack_op(indices, list(levels), backend or "")
    return codes


def check_levels(levels: Sequence[int]) -> None:
    """Raise ValueError unless there is at least one level, all are in 2..65536 and ids fit int64."""
    if not levels or min(levels) < 2 or max(levels) > _MOST_LEVELS or math.prod(levels) >= 2**63:
        raise ValueError(
            f"fsq: expected levels >= 2, at least one, none above {_MOST_LEVELS}, product below 2^63, "
            f"got {list(levels)}"
        )


class _Channels(NamedTuple):
    """What each channel needs, on one device.

    level, place [D] int64: L and prod_{j<i} L_j. borders [D, P]: ascending, +inf behind the last; P is a power of two
    and at least one +inf long. shift, slope [D]: s, and h / floor(L/2), the slope of the codes over tanh(z+s).
    """

    level: Tensor
    place: Tensor
    borders: Tensor
    shift: Tensor
    slope: Tensor


@lru_cache(maxsize=64)
def _channels(levels: Levels, kind: torch.dtype, device: torch.device) -> _Channels:
    half = [(level - 1) * (1 + _EPS) / 2 for level in levels]
    offset = [0.0 if level % 2 else 0.5 for level in levels]
    shift = [math.atanh(o / h) for o, h in zip(offset, half, strict=True)]
    slope = [h / (level // 2) for h, level in zip(half, levels, strict=True)]
    places = [math.prod(levels[:i]) for i in range(len(levels))]
    borders = torch.full((len(levels), 1 << (max(levels) - 1).bit_length()), math.inf, dtype=torch.float64)
    for row, level, h, o, s in zip(borders, levels, half, offset, shift, strict=True):
        found = [math.atanh((m + 0.5 - level // 2 + o) / h) - s for m in range(level - 1)]
        row[: level - 1] = torch.tensor(found, dtype=torch.float64)
    return _Channels(
        torch.tensor(levels, device=device),
        torch.tensor(places, device=device),
        _rounded_down(borders, kind).to(device),
        torch.tensor(shift, dtype=kind, device=device),
        torch.tensor(slope, dtype=kind, device=device),
    )


def _rounded_down(borders: Tensor, kind: torch.dtype) -> Tensor:
    """The next number of that dtype below each: a number of that dtype is above both or above neither."""
    rounded = borders.to(kind)
    below = torch.nextafter(rounded, torch.full_like(rounded, -math.inf))
    return rounded.where(rounded.double() <= borders, below)


def _computed_in(z: Tensor) -> torch.dtype:
    return torch.float64 if z.dtype == torch.float64 else torch.float32


def _body(z: Tensor, levels: list[int], backend: str) -> tuple[Tensor, Tensor]:
    codes, ids = run("fsq", BACKENDS, backend, (z.reshape(-1, len(levels)),), tuple(levels))
    return codes.reshape(z.shape), ids.reshape(z.shape[:-1])


def _fake(z: Tensor, levels: list[int], backend: str) -> tuple[Tensor, Tensor]:
    return z.new_empty(z.shape), z.new_empty(z.shape[:-1], dtype=torch.int64)


def _backward_body(gradient: Tensor, z: Tensor, levels: list[int], backend: str) -> Tensor:
    rows = (gradient.reshape(-1, len(levels)), z.reshape(-1, len(levels)))
    found: Tensor = run("fsq_backward", _BACKWARD, backend, rows, tuple(levels))
    return found.reshape(z.shape)


def _fake_backward(gradient: Tensor, z: Tensor, levels: list[int], backend: str) -> Tensor:
    return z.new_empty(z.shape)


def _remember(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    z, ctx.levels, ctx.backend = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(z)


def _backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Any, ...]:
    return _backward_op(gradient, *ctx.saved_tensors, ctx.levels, ctx.backend), None, None


def _unpack_body(indices: Tensor, levels: list[int], backend: str) -> Tensor:
    check_ids("fsq_unpack", indices, math.prod(levels))
    codes: Tensor = run("fsq_unpack", _UNPACK, backend, (indices.reshape(-1),), tuple(levels))
    return codes.reshape(*indices.shape, len(levels))


def _fake_unpack(indices: Tensor, levels: list[int], backend: str) -> Tensor:
    return indices.new_empty((*indices.shape, len(levels)), dtype=torch.float32)


_op = define_op("vistok::fsq", _body, _fake, _backward, _remember)
_unpack_op = define_op("vistok::fsq_unpack", _unpack_body, _fake_unpack)
_backward_op = define_op("vistok::fsq_backward", _backward_body, _fake_backward)


def _reference(z: Tensor, levels: Levels) -> tuple[Tensor, Tensor]:
    """z [N, D] -> codes [N, D], ids [N], as all back ends below."""
    channels = _channels(levels, _computed_in(z), z.device)
    values = z.to(channels.borders.dtype)
    values = values.where(values == values, -math.inf)
    digits = torch.searchsorted(channels.borders, values.T.contiguous()).T
    codes = _code_of(digits, channels.level, values.dtype).to(z.dtype)
    return codes.contiguous(), (digits * channels.place).sum(-1)


def _code_of(digits: Tensor, level: Tensor, kind: torch.dtype) -> Tensor:
    scale = level // 2
    return (digits - scale).to(kind) / scale


def _cpu(z: Tensor, levels: Levels) -> tuple[Tensor, Tensor]:
    if max(levels) > _FEW_LEVELS:
        return _reference(z, levels)
    quantize = library.function("fsq")
    channels = _channels(levels, torch.float32, z.device)
    rows = z.float().contiguous()
    codes, ids = torch.empty(rows.shape), torch.empty(len(rows), dtype=torch.int64)
    pointers = (tensor.data_ptr() for tensor in (rows, channels.borders, channels.level, codes, ids))
    if quantize(*pointers, *rows.shape, channels.borders.shape[1], max(levels) - 1, torch.get_num_threads()):
        raise MemoryError(f"fsq: no memory for the borders of {len(levels)} channels")
    return codes.to(z.dtype), ids


def _triton(z: Tensor, levels: Levels) -> tuple[Tensor, Tensor]:
    from vistok.triton_kernels import fsq as kernel

    channels = _channels(levels, torch.float32, z.device)
    found: tuple[Tensor, Tensor] = kernel.quantize(z, channels.borders, channels.level, channels.place)
    return found


def _slopes(gradient: Tensor, z: Tensor, levels: Levels) -> Tensor:
    """gradient, z [N, D] -> gradient times d(b / floor(L/2)) / dz, in the dtype of z."""
    channels = _channels(levels, _computed_in(z), z.device)
    curve = torch.tanh(z.to(channels.shift.dtype) + channels.shift)
    return (gradient * channels.slope * (1 - curve * curve)).to(z.dtype)


def _slopes_triton(gradient: Tensor, z: Tensor, levels: Levels) -> Tensor:
    from vistok.triton_kernels import fsq as kernel

    channels = _channels(levels, torch.float32, z.device)
    found: Tensor = kernel.slopes(gradient, z, channels.shift, channels.slope)
    return found


def _unpack(indices: Tensor, levels: Levels) -> Tensor:
    """indices [N] -> codes [N, D] float32, as all back ends below."""
    channels = _channels(levels, torch.float32, indices.device)
    digits = indices[:, None] // channels.place % channels.level
    return _code_of(digits, channels.level, torch.float32).where(indices[:, None] >= 0, 0.0)


def _unpack_cpu(indices: Tensor, levels: Levels) -> Tensor:
    unpack = library.function("fsq_unpack")
    ids, level = indices.contiguous(), _channels(levels, torch.float32, indices.device).level
    codes = torch.empty(len(ids), len(levels))
    pointers = (tensor.data_ptr() for tensor in (ids, level, codes))
    unpack(*pointers, *codes.shape, torch.get_num_threads())
    return codes


def _unpack_triton(indices: Tensor, levels: Levels) -> Tensor:
    from vistok.triton_kernels import fsq as kernel

    channels = _channels(levels, torch.float32, indices.device)
    found: Tensor = kernel.unpack(indices, channels.level, channels.place, math.prod(levels))
    return found


BACKENDS = {
    "reference": Backend(_reference),
    "cpu": Backend(_cpu, "cpu", SINGLE, library="fsq"),
    "triton": Backend(_triton, "cuda", SINGLE),
}
_BACKWARD = {
    "reference": Backend(_slopes),
    "cpu": Backend(_slopes, "cpu", ANY_FLOAT),
    "triton": Backend(_slopes_triton, "cuda", SINGLE),
}
_UNPACK = {
    "reference": Backend(_unpack),
    "cpu": Backend(_unpack_cpu, "cpu", library="fsq_unpack"),
    "triton": Backend(_unpack_triton, "cuda"),
}
