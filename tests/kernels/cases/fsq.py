"""FSQ and its way back: neighbours of borders, numbers that are none, one to 62 channels; its compiled variants."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from vistok.triton_kernels import fsq as kernel

from ..table import Case, Cost, Kernel

Arguments = dict[str, Any]

PUBLISHED = [8, 8, 8, 5, 5, 5]


def curve(levels: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    """h, o and s of the paper, [D] float64."""
    level = torch.tensor(levels, dtype=torch.float64)
    half = (level - 1) * 1.001 / 2
    offset = torch.where(level % 2 == 0, 0.5, 0.0).double()
    return half, offset, torch.atanh(offset / half)


def digits_of(z: Tensor, levels: list[int]) -> Tensor:
    """The paper's formula in float64, int64; NaN has the lowest digit."""
    half, offset, shift = curve(levels)
    level = torch.tensor(levels)
    rounded = (torch.tanh(z.double().cpu() + shift) * half - offset).round().nan_to_num(nan=-math.inf)
    return (rounded + level // 2).clamp(min=torch.zeros_like(level), max=level - 1).long()


def codes_of(digits: Tensor, levels: list[int]) -> Tensor:
    scale = torch.tensor(levels) // 2
    return (digits - scale).float() / scale


def check(arguments: Arguments, found: tuple[Tensor, Tensor]) -> None:
    """Ids and codes to the bit."""
    z, levels = arguments["z"], arguments["levels"]
    codes, ids = found
    digits = digits_of(z, levels)
    place = torch.tensor([math.prod(levels[:i]) for i in range(len(levels))])
    assert ids.dtype == torch.int64 and torch.equal(ids.cpu(), (digits * place).sum(-1))
    assert codes.dtype == z.dtype and torch.equal(codes.cpu(), codes_of(digits, levels).to(z.dtype))


def check_unpacked(arguments: Arguments, codes: Tensor) -> None:
    ids, levels = arguments["indices"].cpu(), arguments["levels"]
    left, digits = ids.clamp(min=0), []
    for level in levels:
        digits.append(left % level)
        left = left // level
    expected = codes_of(torch.stack(digits, -1), levels)
    assert torch.equal(codes.cpu(), expected.where(ids[..., None] >= 0, 0.0))


def draw(
    device: str, levels: list[int], *lead: int, spread: float = 1.0, dtype: torch.dtype = torch.float32
) -> Arguments:
    z = spread * torch.randn(*lead, len(levels), generator=torch.Generator().manual_seed(0))
    return {"z": z.to(device, dtype), "levels": levels}


def borders(device: str) -> Arguments:
    """The two float32 numbers around every border of every count of levels up to 16."""
    levels = list(range(2, 17))
    half, offset, shift = curve(levels)
    m = torch.arange(15)[:, None] - torch.tensor(levels) // 2 + 0.5
    exact = torch.atanh(((m + offset) / half).clamp(-0.999, 0.999)) - shift
    near = exact.float()
    around = torch.cat([near, near.nextafter(torch.tensor(9.0)), near.nextafter(torch.tensor(-9.0))])
    return {"z": around.to(device), "levels": levels}


def not_finite(device: str) -> Arguments:
    z = torch.tensor([torch.nan, torch.inf, -torch.inf, 0.0, -0.0, 1e38, -1e-45])
    return {"z": torch.stack([z, z.roll(1), z.roll(2)], 1).to(device), "levels": [8, 5, 2]}


def strided(device: str) -> Arguments:
    z = torch.randn(2, 9, 20, generator=torch.Generator().manual_seed(0)).to(device)
    return {"z": z.transpose(1, 2)[:, ::3, 2:8], "levels": PUBLISHED}


def far_apart(device: str) -> Arguments:
    """The last row lies past 2^31 numbers; the memory between is never touched."""
    rows, step = 18, 1 << 27
    z = torch.empty(rows * step, dtype=torch.bfloat16, device=device).as_strided((rows, 6), (step, 1))
    z.copy_(torch.randn(rows, 6, generator=torch.Generator().manual_seed(0)))
    return {"z": z, "levels": PUBLISHED}


def draw_ids(device: str, levels: list[int], *lead: int) -> Arguments:
    ids = torch.randint(-1, math.prod(levels), lead, generator=torch.Generator().manual_seed(0))
    return {"indices": ids.to(device), "levels": levels}


def strided_ids(device: str) -> Arguments:
    arguments = draw_ids(device, PUBLISHED, 12, 3)
    return {**arguments, "indices": arguments["indices"].T[:, ::2]}


def no_tokens(device: str) -> Arguments:
    return {"indices": torch.full((5,), -1, device=device), "levels": PUBLISHED}


def _case(name: str, make: Callable[..., Arguments], *values: Any, **options: Any) -> Case:
    return Case("fsq", name, lambda device: make(device, *values, **options), check)


def _unpack(name: str, make: Callable[..., Arguments], *values: Any) -> Case:
    return Case("fsq_unpack", name, lambda device: make(device, *values), check_unpacked)


_LEVELS = {"d1": [5], "d2": [2, 3], "d4": [7, 6, 5, 4], "d39": [3] * 39, "d62": [2] * 62, "many": [300, 3, 1001]}
CASES = [
    *(_case(f"levels-{name}", draw, levels, 61) for name, levels in _LEVELS.items()),
    _case("published", draw, PUBLISHED, 307),
    _case("wide-spread", draw, PUBLISHED, 61, spread=30.0),
    _case("most-levels", draw, [65536], 31),
    _case("bfloat16", draw, PUBLISHED, 61, dtype=torch.bfloat16),
    _case("float16", draw, PUBLISHED, 61, dtype=torch.float16),
    _case("no-rows", draw, PUBLISHED, 0),
    _case("one-vector", draw, PUBLISHED),
    _case("batched", draw, PUBLISHED, 2, 3, 4),
    _case("borders", borders),
    _case("not-finite", not_finite),
    _case("strided", strided),
    _case("rows-past-2-to-the-31", far_apart),
    *(_unpack(f"levels-{name}", draw_ids, levels, 61) for name, levels in _LEVELS.items()),
    _unpack("published", draw_ids, PUBLISHED, 307),
    _unpack("no-rows", draw_ids, PUBLISHED, 0),
    _unpack("one-id", draw_ids, PUBLISHED),
    _unpack("batched", draw_ids, PUBLISHED, 2, 3, 4),
    _unpack("strided", strided_ids),
    _unpack("no-tokens", no_tokens),
]

_N = 1 << 20
_POINTERS = {"borders": "*fp32", "levels": "*i64", "places": "*i64", "ids": "*i64"}


def _size(pointer: str) -> int:
    return 2 if pointer == "*bf16" else 4


def _forward(pointer: str, width: int) -> Kernel:
    columns = 1 << (width - 1).bit_length()
    return Kernel(
        op="fsq",
        name=f"{pointer[1:]}-d{width}",
        function=kernel.fsq_kernel,
        arguments={"z": pointer, "codes": pointer, **_POINTERS, "N": "i32"},
        aligned=("z", "codes", *_POINTERS),
        constants=lambda _: {"WIDTH": width, "STEPS": 3, "ROWS": kernel.TILE // columns, "COLUMNS": columns},
        options=lambda _: {"num_warps": 4, "num_stages": 3},
        tensor_cores=False,
        vector_loads=width % 8 == 0,
        cost=Cost(f"N={_N}, D={width}", float(_N * (2 * _size(pointer) * width + 8)), other_flops=12.0 * _N * width),
    )


def _backward(pointer: str, width: int, ragged: bool = False) -> Kernel:
    """ragged: the number of values is no multiple of 16, which rules vector loads out."""
    types = {"gradient": pointer, "z": pointer, "shift": "*fp32", "slope": "*fp32", "out": pointer, "count": "i32"}
    return Kernel(
        op="fsq",
        name=f"backward-{pointer[1:]}-d{width}" + ("-ragged" if ragged else ""),
        function=kernel.fsq_backward_kernel,
        arguments=types,
        aligned=tuple(name for name in types if name != "count" or not ragged),
        constants=lambda _: {"WIDTH": width, "TILE": kernel.TILE},
        options=lambda _: {"num_warps": 4, "num_stages": 3},
        tensor_cores=False,
        vector_loads=not ragged,
        cost=Cost(f"N={_N}, D={width}", float(_N * 3 * _size(pointer) * width), other_flops=12.0 * _N * width),
    )


def _backwards(width: int, wide: bool) -> Kernel:
    columns = 1 << (width - 1).bit_length()
    return Kernel(
        op="fsq_unpack",
        name=f"d{width}" + ("-wide" if wide else ""),
        function=kernel.fsq_unpack_kernel,
        arguments={"ids": "*i64", "levels": "*i64", "places": "*i64", "codes": "*fp32", "N": "i32"},
        aligned=("ids", "levels", "places", "codes"),
        constants=lambda _: {"WIDTH": width, "WIDE": wide, "ROWS": kernel.TILE // columns, "COLUMNS": columns},
        options=lambda _: {"num_warps": 4, "num_stages": 3},
        tensor_cores=False,
        vector_loads=False,
        cost=Cost(f"N={_N}, D={width}", float(_N * (4 * width + 8)), other_flops=40.0 * _N * width),
    )


KERNELS = [
    *(_forward(pointer, width) for pointer in ("*fp32", "*bf16") for width in (6, 8)),
    *(_backward(pointer, 6, ragged) for pointer in ("*fp32", "*bf16") for ragged in (False, True)),
    _backwards(6, False),
    _backwards(39, True),
]
