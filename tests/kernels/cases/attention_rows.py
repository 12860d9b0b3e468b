"""Attention rows: masks, shared key heads, causal rows, known normalisers, strides; compiled variants."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from vistok.triton_kernels import attention_rows as kernel

from vistok.ops.attention_rows import AttentionRows

from ..table import Case, Cost, Kernel

Arguments = dict[str, Any]


def true_rows(arguments: Arguments) -> tuple[Tensor, Tensor, Tensor]:
    """Mean [B, N], lse [B, H, S] and rows [B, H, S, N] in float64, head by head over all keys."""
    q, k = arguments["q"].double(), arguments["k"].double()
    k = k.repeat_interleave(q.shape[1] // k.shape[1], 1)
    scale = arguments.get("scale", q.shape[3] ** -0.5)
    visible = torch.ones(len(q), 1, q.shape[2], k.shape[2], dtype=torch.bool, device=q.device)
    offset = arguments.get("causal_offset")
    if offset is not None:
        at = torch.as_tensor(offset, device=q.device).reshape(-1, 1) + torch.arange(q.shape[2], device=q.device)
        visible = visible & (torch.arange(k.shape[2], device=q.device) <= at[..., None])[:, None]
    if "q_mask" in arguments:
        visible = visible & arguments["q_mask"][:, None, :, None]
    if "k_mask" in arguments:
        visible = visible & arguments["k_mask"][:, None, None]
    scores = (scale * torch.einsum("bhsd,bhnd->bhsn", q, k)).where(visible, -torch.inf)
    lse = scores.logsumexp(3)
    rows = scores.softmax(3).where(visible, 0)
    counted = visible.any(3).sum((1, 2)) * q.shape[1]
    return rows.sum((1, 2)) / counted.clamp(min=1)[:, None], lse, rows


def check(arguments: Arguments, found: AttentionRows) -> None:
    mean, lse, rows = true_rows(arguments)
    columns = arguments.get("image_slice", slice(None))
    tolerance = {"rtol": 1e-4, "atol": 1e-7, "equal_nan": True}
    torch.testing.assert_close(found.mean, mean[:, columns].float(), **tolerance)
    torch.testing.assert_close(found.lse, lse.float(), rtol=1e-5, atol=1e-5, equal_nan=True)
    assert (found.rows is not None) == arguments.get("return_rows", False)
    if found.rows is not None:
        torch.testing.assert_close(found.rows, rows[..., columns].float(), **tolerance)


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def draw(
    device: str,
    shape: tuple[int, int, int, int, int, int] = (2, 4, 2, 3, 37, 16),
    types: tuple[torch.dtype, torch.dtype] = (torch.float32,) * 2,
    **options: Any,
) -> Arguments:
    """shape: items, heads, key heads, rows, keys, width."""
    items, heads, groups, rows, keys, width = shape
    q, k = normal(0, items, heads, rows, width), normal(1, items, groups, keys, width)
    return {"q": q.to(device, types[0]), "k": k.to(device, types[1]), **options}


def masked(device: str, poison: float = torch.nan, **options: Any) -> Arguments:
    """Left-padded items, of which the last one is empty; what is masked holds `poison`."""
    arguments = draw(device, (3, 4, 2, 5, 70, 16))
    k_mask = torch.arange(70) >= torch.tensor([[0], [33], [70]])
    q_mask = torch.arange(5) >= torch.tensor([[1], [3], [0]])
    q, k = arguments["q"].clone(), arguments["k"].clone()
    k.transpose(1, 2)[~k_mask.to(device)] = poison
    q.transpose(1, 2)[~q_mask.to(device)] = poison
    return {"q": q, "k": k, "q_mask": q_mask.to(device), "k_mask": k_mask.to(device), **options}


def offsets(device: str) -> Arguments:
    """Rows before the first key, inside and behind the last key."""
    return draw(device, causal_offset=torch.tensor([-2, 35], device=device), return_rows=True)


def not_finite(device: str) -> Arguments:
    """A visible key that is not a number makes its rows so, and no other item."""
    arguments = draw(device)
    arguments["k"][1, 0, 5, 3] = torch.nan
    return arguments


def known(device: str, **options: Any) -> Arguments:
    """The normaliser of all keys, as an attention kernel returns it."""
    arguments = draw(device, **options)
    return {**arguments, "lse": true_rows(arguments)[1].float()}


def strided(device: str) -> Arguments:
    """Heads that lie between the tokens, as projections give them, and rows and keys out of longer ones."""
    q, k = normal(0, 2, 9, 4, 20).to(device).transpose(1, 2), normal(1, 2, 50, 2, 20).to(device).transpose(1, 2)
    return {"q": q[:, :, 2:7:2, 2:18], "k": k[:, :, 1:48, 2:18], "k_mask": (normal(2, 2, 94) > 0).to(device)[:, ::2]}


def scattered(device: str) -> Arguments:
    """Numbers of a key that are no neighbours in memory."""
    arguments = draw(device)
    return {**arguments, "k": arguments["k"].transpose(2, 3).contiguous().transpose(2, 3)}


def far_apart(device: str) -> Arguments:
    """The last key lies past 2^31 numbers; the memory between is never touched."""
    keys, step = 18, 1 << 27
    k = torch.empty(keys * step, dtype=torch.bfloat16, device=device).as_strided((1, 1, keys, 16), (16, 16, step, 1))
    k.copy_(normal(1, 1, 1, keys, 16))
    return {"q": normal(0, 1, 2, 3, 16).to(device, torch.bfloat16), "k": k}


def large(device: str) -> Arguments:
    """Scores up to some thousands, of which a row must subtract the largest."""
    arguments = draw(device, (1, 2, 1, 3, 37, 16), return_rows=True)
    return {**arguments, "q": (arguments["q"] * 8).round(), "k": (arguments["k"] * 8).round(), "scale": 4.0}


def _case(name: str, make: Callable[..., Arguments], *values: Any, **options: Any) -> Case:
    return Case("attention_rows", name, lambda device: make(device, *values, **options), check)


_NARROW = (torch.bfloat16, torch.float16)
CASES = [
    *(
        _case(f"d{shape[-1]}-rows{shape[1] // shape[2] * shape[3]}", draw, shape)
        for shape in (
            (1, 2, 2, 1, 67, 1),
            (2, 4, 1, 1, 61, 5),
            (1, 7, 1, 3, 37, 48),
            (1, 2, 1, 1, 70, 200),
            (1, 4, 4, 31, 17, 64),
            (1, 2, 2, 1, 9, 128),
            (1, 6, 2, 23, 131, 72),
        )
    ),  # fmt: skip
    *(_case(str(kind)[6:], draw, types=(kind, kind), return_rows=True) for kind in _NARROW),
    *(_case(f"{str(kind)[6:]}-many-rows", draw, (1, 4, 1, 9, 41, 40), types=(kind, kind)) for kind in _NARROW),
    _case("float32-and-bfloat16", draw, types=(torch.float32, torch.bfloat16)),
    _case("bfloat16-and-float32", draw, types=(torch.bfloat16, torch.float32)),
    _case("rows-of-every-head", draw, return_rows=True),
    _case("scale", draw, scale=0.7),
    _case("columns", draw, (1, 4, 2, 3, 131, 16), image_slice=slice(3, 90), return_rows=True),
    _case("columns-from-the-end", draw, image_slice=slice(-5, None)),
    _case("no-columns", draw, image_slice=slice(9, 4), return_rows=True),
    _case("causal", draw, (2, 4, 2, 7, 70, 16), causal_offset=30, return_rows=True),
    _case("causal-many-rows", draw, (1, 4, 1, 19, 70, 16), causal_offset=50, image_slice=slice(40, 70)),
    _case("causal-from-the-start", draw, (1, 2, 1, 7, 7, 16), causal_offset=0),
    _case("causal-of-each-item", offsets),
    _case("causal-and-most-keys-behind", draw, (1, 2, 1, 3, 140, 16), causal_offset=20),
    _case("masked", masked, return_rows=True),
    _case("masked-large-finite", masked, poison=1e15),
    _case("masked-causal-columns", masked, causal_offset=60, image_slice=slice(20, 66)),
    _case("known-lse", known, return_rows=True),
    _case("known-lse-columns-causal", known, causal_offset=20, image_slice=slice(10, 30)),
    _case("not-finite", not_finite),
    _case("large-scores", large),
    _case("strided", strided),
    _case("scattered", scattered),
    _case("no-keys", draw, (2, 4, 2, 3, 0, 16), return_rows=True),
    _case("no-query-rows", draw, (2, 4, 2, 0, 37, 16), return_rows=True),
    _case("no-items", draw, (0, 4, 2, 3, 37, 16)),
    _case("keys-past-2-to-the-31", far_apart),
]

_SIZES = ("G", "S", "N", "Q", "q_stride", "item_stride", "group_stride", "key_stride")
_STRIDES = ("q_stride", "item_stride", "group_stride", "key_stride")
_TYPES = {"last": "*i64", "allowed": "*i1", "out": "*fp32", "scale": "fp32", **dict.fromkeys(_SIZES, "i32")}
_TENSORS = ("q", "k", "last", "allowed", "out")
_N, _GROUPS = 2880, 8


def _variant(which: str, dtype: torch.dtype, rows: int, width: int, weights: bool = False) -> Kernel:
    narrow = dtype == torch.bfloat16
    name = f"{which}-{'bf16' if narrow else 'fp32'}-rows{rows}-d{width}" + ("-weights" if weights else "")
    pointers = dict.fromkeys(("q", "k"), "*bf16" if narrow else "*fp32")
    sums = which == "sums"
    own = {"lse": "*fp32", "weights": "*fp32", "first": "i32", "C": "i32"} if sums else {"keys_per_split": "i32"}

    def constants(target: str) -> dict[str, Any]:
        shared = kernel.constants(rows, width, dtype, target)
        return {**shared, "WEIGHTS": weights} if sums else shared

    def options(target: str) -> dict[str, int]:
        tile = kernel.config(rows, width, dtype, target)
        return {"num_warps": tile.warps, "num_stages": tile.stages}

    multiplied = 2.0 * _GROUPS * rows * _N * width
    return Kernel(
        op="attention_rows",
        name=name,
        function=kernel.column_sum_kernel if sums else kernel.row_lse_kernel,
        arguments={**_TYPES, **pointers, **own},
        aligned=(*_TENSORS, *_STRIDES, *(("lse", "weights") if sums else ())),
        constants=constants,
        options=options,
        tensor_cores=True,
        vector_loads=True,
        cost=Cost(
            shape=f"B=1, G={_GROUPS}, Q={rows}, N={_N}, D={width}",
            bytes=float((2 if narrow else 4) * _GROUPS * (_N + rows) * width + 4 * _GROUPS * _N * (1 + rows * weights)),
            tensor_core_flops=multiplied * (1 if narrow else 3),
            # Per score: scale, mask, difference, exponential and sum.
            other_flops=6.0 * _GROUPS * rows * _N,
            tensor_core_rate=989e12 if narrow else 494.7e12,
        ),
    )


_FLOAT, _HALF = torch.float32, torch.bfloat16
KERNELS = [
    *(
        _variant(which, dtype, rows, width)
        for which in ("lse", "sums")
        for dtype in (_FLOAT, _HALF)
        for rows, width in ((4, 128), (256, 128), (256, 64), (256, 80))
    ),
    *(_variant("sums", dtype, rows, 128, weights=True) for dtype in (_FLOAT, _HALF) for rows in (4, 256)),
    _variant("sums", _FLOAT, 256, 256),
]
