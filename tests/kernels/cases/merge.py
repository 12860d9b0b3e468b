"""Merge and unmerge: sizes, empty and crowded slots, dropped tokens, odd shapes and strides; the compiled variants."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from vistok.triton_kernels import compact as copy_kernel
from vistok.triton_kernels import merge as kernel

from vistok.ops.merge import Merged
from vistok.tokens import Assignment

from ..table import Case, Cost, Kernel

Arguments = dict[str, Any]
_UNIT = {torch.float32: 2.0**-20, torch.float16: 2.0**-10, torch.bfloat16: 2.0**-7, torch.float64: 2.0**-45}


def check(arguments: Arguments, found: Merged) -> None:
    """Against a one-hot product in float64; the only token of a slot is unchanged."""
    x, (slot, count) = arguments["x"], arguments["assignment"]
    sizes = arguments.get("sizes")
    weights = torch.ones(slot.shape, dtype=torch.float64, device=x.device) if sizes is None else sizes.double()
    belongs = (slot[:, None] == torch.arange(count, device=x.device)[:, None]).double()
    total = (belongs * weights[:, None]).sum(2)
    used = (slot >= 0).reshape(*slot.shape, *(1,) * (x.ndim - 2))
    rows = x.double().where(used, 0).flatten(2) if x.ndim > 2 else x.double().where(used, 0)[..., None]
    means = (belongs * weights[:, None]) @ rows / total.where(total != 0, 1)[..., None]
    assert found.values.dtype == x.dtype and found.values.shape == (x.shape[0], count, *x.shape[2:])
    torch.testing.assert_close(found.sizes.double(), total, rtol=1e-6, atol=0)
    values = found.values.double().reshape(means.shape)
    torch.testing.assert_close(values, means, rtol=_UNIT[x.dtype], atol=4 * _UNIT[x.dtype])
    alone = (belongs.sum(2) == 1) & (total != 0)
    copied = (belongs @ rows).to(x.dtype).double()
    torch.testing.assert_close(values[alone], copied[alone], rtol=0, atol=0)
    assert not values[total == 0].any()


def check_back(arguments: Arguments, found: Tensor) -> None:
    y, (slot, _) = arguments["y"], arguments["assignment"]
    expected = torch.full((*slot.shape, *y.shape[2:]), arguments.get("fill", 0)).to(y)
    for item, row in enumerate(slot.tolist()):
        for token, place in enumerate(row):
            if place >= 0:
                expected[item, token] = y[item, place]
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def draw(device: str, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0)).to(device, dtype)


def slots(device: str, batch: int, tokens: int, count: int, lowest: int = 0) -> Assignment:
    generator = torch.Generator().manual_seed(1)
    return Assignment(
        torch.randint(lowest, max(count, lowest + 1), (batch, tokens), generator=generator).to(device), count
    )


def averages(device: str, batch: int, tokens: int, count: int, *rest: int, dtype: torch.dtype) -> Arguments:
    sizes = torch.randint(1, 5, (batch, tokens), generator=torch.Generator().manual_seed(2)).float()
    x = draw(device, batch, tokens, *rest, dtype=dtype)
    return {"x": x, "assignment": slots(device, batch, tokens, count, -1), "sizes": sizes.to(device)}


def plain(device: str) -> Arguments:
    return {"x": draw(device, 2, 17, 24), "assignment": slots(device, 2, 17, 7)}


def crowded(device: str) -> Arguments:
    """All tokens of one item in one slot, the other slots empty."""
    slot = torch.full((2, 67), 3, device=device)
    slot[1] = torch.arange(67, device=device) % 11
    return {"x": draw(device, 2, 67, 5), "assignment": Assignment(slot, 11)}


def dropped(device: str) -> Arguments:
    """What is dropped may hold anything."""
    arguments = averages(device, 2, 13, 5, 8, dtype=torch.float32)
    arguments["x"][:, ::3] = torch.nan
    arguments["x"][:, 1] = torch.inf
    arguments["assignment"].slot[:, ::3] = -1
    arguments["assignment"].slot[:, 1] = -1
    return arguments


def all_dropped(device: str) -> Arguments:
    slot = torch.full((2, 5), -1, device=device)
    return {"x": torch.full((2, 5, 3), torch.nan, device=device), "assignment": Assignment(slot, 4)}


def without_size(device: str) -> Arguments:
    arguments = averages(device, 2, 13, 5, 8, dtype=torch.float32)
    return {**arguments, "sizes": torch.zeros(2, 13, device=device)}


def alone(device: str, dtype: torch.dtype) -> Arguments:
    """Every token in its own slot, with a size that would round it."""
    order = torch.arange(9, device=device).flip(0).repeat(2, 1)
    sizes = torch.full((2, 9), 3.7, device=device)
    return {"x": draw(device, 2, 9, 16, dtype=dtype), "assignment": Assignment(order, 9), "sizes": sizes}


def strided(device: str) -> Arguments:
    x = draw(device, 3, 12, 40)[:, 1:, 8:21]
    return {"x": x, "assignment": Assignment(slots(device, 3, 22, 6).slot[:, ::2], 6)}


def apart(device: str) -> Arguments:
    return {"x": draw(device, 2, 6, 13).transpose(1, 2), "assignment": slots(device, 2, 13, 4)}


def far_apart(device: str) -> Arguments:
    """The last token lies past 2^31 elements; the memory between is never touched."""
    tokens, step = 18, 1 << 27
    x = torch.empty(tokens * step, dtype=torch.bfloat16, device=device)
    x = x.as_strided((1, tokens, 5), (tokens * step, step, 1))
    x.copy_(draw(device, 1, tokens, 5))
    return {"x": x, "assignment": slots(device, 1, tokens, 7)}


def spread(device: str, dtype: torch.dtype, *rest: int, **more: Any) -> Arguments:
    y = (draw(device, 2, 7, *rest) * 9).to(dtype)
    return {"y": y, "assignment": slots(device, 2, 17, 7, -1), **more}


def _case(name: str, make: Callable[..., Arguments], *values: Any, **more: Any) -> Case:
    return Case("merge", name, lambda device: make(device, *values, **more), check)


def _back(name: str, *values: Any, **more: Any) -> Case:
    return Case("unmerge", name, lambda device: spread(device, *values, **more), check_back)


CASES = [
    *(_case(f"d{d}", averages, 2, 31, 7, d, dtype=torch.float32) for d in (1, 5, 48, 200)),
    *(
        _case(f"{str(dtype).removeprefix('torch.')}", averages, 2, 17, 5, 24, dtype=dtype)
        for dtype in (torch.bfloat16, torch.float16)
    ),
    _case("one-number-per-token", averages, 2, 17, 5, dtype=torch.float32),
    _case("more-axes", averages, 2, 17, 5, 2, 3, dtype=torch.float32),
    _case("no-sizes", plain),
    _case("crowded", crowded),
    _case("dropped", dropped),
    _case("all-dropped", all_dropped),
    _case("without-size", without_size),
    *(_case(f"alone-{str(dtype).removeprefix('torch.')}", alone, dtype) for dtype in (torch.float32, torch.bfloat16)),
    _case("strided", strided),
    _case("apart", apart),
    _case("tokens-past-2-to-the-31", far_apart),
    _case("no-items", averages, 0, 5, 3, 4, dtype=torch.float32),
    _case("no-width", averages, 2, 5, 3, 0, dtype=torch.float32),
    _case("no-slots", averages, 2, 5, 0, 4, dtype=torch.float32),
    *(_back(f"d{d}", torch.float32, d) for d in (1, 48, 200)),
    _back("ids", torch.int64, fill=-1.0),
    _back("bfloat16", torch.bfloat16, 2, 5, fill=0.5),
]

_B, _N, _R, _D = 32, 576, 144, 1024
_TYPES = {"sizes": "*fp32", "order": "*i64", "starts": "*i64", "totals": "*fp32", "slots": "i32"}


def _mean(pointer: str, width: int, aligned: bool = True) -> Kernel:
    size = 4 if pointer == "*fp32" else 2
    names = ("x", "sizes", "order", "starts", "out", "totals", "item_stride", "slot_stride")
    return Kernel(
        op="merge",
        name=f"{pointer[1:]}-d{width}" + ("" if aligned else "-unaligned"),
        function=kernel.merge_kernel,
        arguments={**_TYPES, "x": pointer, "out": pointer, "item_stride": "i32", "slot_stride": "i32"},
        aligned=names if aligned else (),
        constants=lambda _: {"WIDTH": width, "ROWS": kernel.ROWS, "COLUMNS": kernel.columns(width)},
        options=lambda _: {"num_warps": kernel.warps(width), "num_stages": 3},
        tensor_cores=False,
        vector_loads=aligned,
        cost=Cost(
            f"B={_B}, N={_N}, r={_R}, D={_D}",
            float(size * _B * (2 * _N - _R) * _D + 20 * _B * _N),
            other_flops=2.0 * _B * _N * _D,
        ),
    )


def _spread(pointer: str) -> Kernel:
    return Kernel(
        op="unmerge",
        name=pointer[1:],
        function=copy_kernel.copy_rows_kernel,
        arguments={
            **dict.fromkeys(("x", "fill", "out"), pointer),
            **dict.fromkeys(("rows", "slots", "item_stride", "slot_stride", "block_stride"), "i32"),
            "source": "*i64",
        },
        aligned=("x", "source", "fill", "out", "item_stride", "slot_stride", "block_stride"),
        constants=lambda _: {"BLOCKS": 1, "WIDTH": _D, **copy_kernel.tile(_D, 2)},
        options=lambda _: {"num_warps": 4, "num_stages": 3},
        tensor_cores=False,
        vector_loads=True,
        cost=Cost(f"B={_B}, N={_N}, r={_R}, D={_D}", float(2 * _B * (2 * _N - _R) * _D + 8 * _B * _N)),
    )


KERNELS = [_mean("*bf16", _D), _mean("*fp32", _D), _mean("*fp16", 64), _mean("*fp32", 5, False), _spread("*i16")]
