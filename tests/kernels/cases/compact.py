"""Compact and scatter back: masks, slots, lengths, padded tails, all sizes of numbers, strides; compiled variants."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from vistok.triton_kernels import compact as kernel

from vistok.ops.compact import Compact

from ..table import Case, Cost, Kernel

Arguments = dict[str, Any]


def expected_source(arguments: Arguments) -> list[list[int]]:
    """Kept slots of every item, by a loop."""
    keep, lengths = arguments["keep"].tolist(), arguments.get("lengths")
    rows = []
    for item, row in enumerate(keep):
        row = row if lengths is None else row[: int(lengths[item])]
        rows.append([n for n, kept in enumerate(row) if kept] if arguments["keep"].dtype == torch.bool else row)
    return rows


def check(arguments: Arguments, found: Compact[Any]) -> None:
    x, total = arguments["x"], arguments.get("max_total")
    tensors, packed = (x, found.packed) if isinstance(x, list) else ([x], [found.packed])
    rows, slots = expected_source(arguments), tensors[0].shape[1]
    flat = [item * slots + slot for item, row in enumerate(rows) for slot in row]
    tail = 0 if total is None else total - len(flat)
    assert found.source.tolist() == flat + [-1] * tail
    assert found.cu_seqlens.dtype == torch.int32 and found.source.dtype == torch.int64
    assert found.cu_seqlens.tolist() == [sum(map(len, rows[:b])) for b in range(len(rows) + 1)]
    longest = max(map(len, rows), default=0)
    assert found.max_len == longest if total is None else found.max_len >= longest
    for given, taken in zip(tensors, packed, strict=True):
        picked = [given[item, slot] for item, row in enumerate(rows) for slot in row]
        assert taken.shape == (len(flat) + tail, *given.shape[2:]) and taken.dtype == given.dtype
        if picked:
            torch.testing.assert_close(taken[: len(flat)], torch.stack(picked), rtol=0, atol=0, equal_nan=True)
        assert not taken[len(flat) :].any()


def check_back(arguments: Arguments, found: Tensor) -> None:
    packed, source, (batch, slots) = arguments["packed"], arguments["source"].tolist(), arguments["shape"]
    expected = torch.full((batch * slots, *packed.shape[1:]), arguments.get("fill", 0)).to(packed)
    for row, place in enumerate(source):
        if place >= 0:
            expected[place] = packed[row]
    torch.testing.assert_close(found, expected.reshape(found.shape), rtol=0, atol=0, equal_nan=True)
    assert found.shape == (batch, slots, *packed.shape[1:])


def draw(device: str, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    numbers = torch.randn(*shape, generator=torch.Generator().manual_seed(0)) * 50
    return (numbers > 0 if dtype == torch.bool else numbers.to(dtype)).to(device)


def mask(device: str, batch: int, slots: int, share: float = 0.4) -> Tensor:
    return (torch.rand(batch, slots, generator=torch.Generator().manual_seed(1)) < share).to(device)


def by_mask(device: str, batch: int, slots: int, *rest: int, dtype: torch.dtype = torch.float32) -> Arguments:
    return {"x": draw(device, batch, slots, *rest, dtype=dtype), "keep": mask(device, batch, slots)}


def shares(device: str, share: float) -> Arguments:
    return {**by_mask(device, 3, 11, 5), "keep": mask(device, 3, 11, share)}


def by_slots(device: str, **more: Any) -> Arguments:
    order = torch.rand(3, 13, generator=torch.Generator().manual_seed(1)).argsort(1)[:, :5]
    return {"x": draw(device, 3, 13, 24), "keep": order.to(device), **more}


def ragged(device: str) -> Arguments:
    """What lies behind the lengths is not looked at."""
    arguments = by_slots(device, lengths=torch.tensor([5, 0, 2], device=device))
    arguments["keep"][1:, 2:] = -7
    return arguments


def no_choice(device: str) -> Arguments:
    return {"x": draw(device, 2, 7, 5), "keep": torch.zeros(2, 0, dtype=torch.int64, device=device), "max_total": 3}


def ragged_mask(device: str, **more: Any) -> Arguments:
    return {**by_mask(device, 3, 17, 5), "lengths": torch.tensor([17, 0, 6], device=device), **more}


def not_finite(device: str) -> Arguments:
    arguments = by_mask(device, 2, 9, 16)
    arguments["x"][:, ::2] = torch.nan
    arguments["x"][:, 1] = torch.inf
    return arguments


def strided(device: str) -> Arguments:
    """A class token cut off, and columns of wider rows."""
    return {"x": draw(device, 3, 12, 40)[:, 1:, 8:21], "keep": mask(device, 3, 11)}


def apart(device: str) -> Arguments:
    """Neighbours in memory are not neighbours in a row."""
    return {"x": draw(device, 2, 6, 13).transpose(1, 2), "keep": mask(device, 2, 13)}


def cache(device: str) -> Arguments:
    """Keys [B, H, N, D] of a cache, with the hidden states and position ids of the same tokens."""
    keys = draw(device, 2, 3, 11, 16, dtype=torch.bfloat16).transpose(1, 2)
    ids = torch.arange(11, device=device).expand(2, 11)
    return {"x": [keys, draw(device, 2, 11, 48), ids], "keep": mask(device, 2, 11)}


def far_apart(device: str) -> Arguments:
    """The last slot lies past 2^31 elements; the memory between is never touched."""
    slots, step = 18, 1 << 27
    x = torch.empty(slots * step, dtype=torch.bfloat16, device=device).as_strided(
        (1, slots, 5), (slots * step, step, 1)
    )
    x.copy_(draw(device, 1, slots, 5))
    return {"x": x, "keep": mask(device, 1, slots, 0.7)}


def _case(name: str, make: Callable[..., Arguments], *values: Any, **more: Any) -> Case:
    return Case("compact", name, lambda device: make(device, *values, **more), check)


def _packed(device: str, *rest: int, dtype: torch.dtype = torch.float32, **more: Any) -> Arguments:
    places = torch.rand(31, generator=torch.Generator().manual_seed(1)).argsort()[:11]
    places[3] = -1
    return {"packed": draw(device, 11, *rest, dtype=dtype), "source": places.to(device), "shape": (1, 31), **more}


def _nothing_packed(device: str) -> Arguments:
    empty = torch.zeros(0, dtype=torch.int64, device=device)
    return {"packed": draw(device, 0, 5), "source": empty, "shape": (2, 3), "fill": 2.0}


def _back(name: str, make: Callable[..., Arguments], *values: Any, **more: Any) -> Case:
    return Case("scatter_back", name, lambda device: make(device, *values, **more), check_back)


_NUMBERS = (torch.bool, torch.int16, torch.bfloat16, torch.float16, torch.int32, torch.int64, torch.float64)
CASES = [
    *(_case(f"mask-d{d}", by_mask, 3, 31, d) for d in (1, 5, 48, 200)),
    *(_case(f"mask-{str(dtype).removeprefix('torch.')}", by_mask, 2, 7, 3, dtype=dtype) for dtype in _NUMBERS),
    _case("one-number-per-token", by_mask, 3, 31),
    _case("more-axes", by_mask, 2, 7, 2, 3, 5),
    _case("no-width", by_mask, 2, 7, 0),
    _case("all-kept", shares, 1.0),
    _case("none-kept", shares, 0.0),
    _case("no-items", by_mask, 0, 7, 5),
    _case("no-slots", by_mask, 2, 0, 5),
    _case("slots", by_slots),
    _case("slots-and-total", by_slots, max_total=17),
    _case("slots-ragged", ragged),
    _case("no-slot-chosen", no_choice),
    _case("mask-ragged", ragged_mask),
    _case("mask-ragged-and-total", ragged_mask, max_total=30),
    _case("not-finite", not_finite),
    _case("strided", strided),
    _case("apart", apart),
    _case("cache", cache),
    _case("slots-past-2-to-the-31", far_apart),
    *(_back(f"d{d}", _packed, d) for d in (1, 5, 48, 200)),
    _back("bfloat16-fill", _packed, 24, dtype=torch.bfloat16, fill=-1.5),
    _back("int64-fill", _packed, dtype=torch.int64, fill=-1.0),
    _back("float64-nan", _packed, 2, 3, dtype=torch.float64, fill=torch.nan),
    _back("nothing-packed", _nothing_packed),
]

_B, _N, _K, _D = 32, 576, 144, 4096
_TYPES = {"source": "*i64", "rows": "i32", "slots": "i32", "item_stride": "i32", "slot_stride": "i32"}
_POINTERS = ("x", "source", "fill", "out")


def _variant(op: str, pointer: str, width: int, blocks: int = 1, aligned: bool = True) -> Kernel:
    size = int(pointer[2:]) // 8
    kept, written = _B * _K, _B * (_N if op == "scatter_back" else _K)
    return Kernel(
        op=op,
        name=f"{pointer[1:]}-d{width}" + ("" if blocks == 1 else f"x{blocks}") + ("" if aligned else "-unaligned"),
        function=kernel.copy_rows_kernel,
        arguments={**dict.fromkeys(("x", "fill", "out"), pointer), **_TYPES, "block_stride": "i32"},
        aligned=(*_POINTERS, "item_stride", "slot_stride", "block_stride") if aligned else (),
        constants=lambda _: {"BLOCKS": blocks, "WIDTH": width, **kernel.tile(width, size)},
        options=lambda _: {"num_warps": 4, "num_stages": 3},
        tensor_cores=False,
        vector_loads=aligned,
        cost=Cost(f"B={_B}, N={_N}, {_K} kept, D={_D}", float(size * _D * (kept + written) + 8 * written)),
    )


KERNELS = [
    _variant("compact", "*i16", _D),
    _variant("compact", "*i32", _D),
    _variant("compact", "*i16", 128, blocks=8),
    _variant("compact", "*i8", 64),
    _variant("compact", "*i64", 1, aligned=False),
    _variant("compact", "*i32", 5, aligned=False),
    _variant("scatter_back", "*i16", _D),
    _variant("scatter_back", "*i32", 1024),
]
