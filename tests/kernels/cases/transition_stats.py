"""Transition statistics: mixed types, numbers that are none, odd shapes and strides; its compiled variants."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from vistok.triton_kernels import transition_stats as kernel

from vistok.ops.transition_stats import TransitionStats

from ..table import Case, Cost, Kernel

Arguments = dict[str, Any]


def check(arguments: Arguments, found: TransitionStats, exactly: bool) -> None:
    """Against products in float64; whole numbers must be met to the bit."""
    a, b = arguments["a"].double(), arguments["b"].double()
    expected = ((a * a).sum(-1), (b * b).sum(-1), (a * b).sum(-1))
    if "add_to" in arguments:
        expected = tuple(x + y for x, y in zip(expected, arguments["add_to"], strict=True))
    reach = (expected[0] * expected[1]).sqrt()
    for value, exact, scale in zip(found, expected, (expected[0], expected[1], reach), strict=True):
        assert value.dtype == torch.float32
        if exactly:
            torch.testing.assert_close(value, exact.float(), rtol=0, atol=0, equal_nan=True)
        else:
            assert bool(((value - exact).abs() <= 1e-5 * scale).all())


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def whole(seed: int, *shape: int) -> Tensor:
    return torch.randint(-3, 4, shape, generator=torch.Generator().manual_seed(seed)).float()


def draw(
    device: str,
    *shape: int,
    numbers: Callable[..., Tensor] = whole,
    types: tuple[torch.dtype, torch.dtype] = (torch.float32,) * 2,
) -> Arguments:
    return {"a": numbers(0, *shape).to(device, types[0]), "b": numbers(1, *shape).to(device, types[1])}


def strided(device: str) -> Arguments:
    """Rows far apart in one, and numbers of a row far apart in the other."""
    return {"a": whole(0, 2, 9, 40).to(device)[:, ::2, 3:16], "b": whole(1, 2, 13, 5).to(device).transpose(1, 2)}


def not_finite(device: str) -> Arguments:
    arguments = {name: values.abs() + 1 for name, values in draw(device, 1, 7, 37).items()}
    arguments["a"][0, 1, 30], arguments["a"][0, 3, 2], arguments["b"][0, 5, 4] = torch.nan, torch.inf, -torch.inf
    return arguments


def added(device: str) -> Arguments:
    before = TransitionStats(*(whole(seed, 2, 5).to(device) for seed in (2, 3, 4)))
    return {**draw(device, 2, 5, 19), "add_to": before}


def far_apart(device: str) -> Arguments:
    """The last row lies past 2^31 numbers; the memory between is never touched."""
    rows, step = 18, 1 << 27
    a = torch.empty(rows * step, dtype=torch.bfloat16, device=device).as_strided((rows, 16), (step, 1))
    a.copy_(whole(0, rows, 16))
    return {"a": a, "b": whole(1, rows, 16).to(device, torch.bfloat16)}


def _case(name: str, make: Callable[..., Arguments], *shape: int, exactly: bool = True, **options: Any) -> Case:
    return Case(
        "transition_stats", name, lambda device: make(device, *shape, **options), partial(check, exactly=exactly)
    )


_NARROW = (torch.bfloat16, torch.float16)
CASES = [
    *(_case(f"whole-d{d}", draw, 2, n, d) for n, d in ((31, 1), (7, 5), (13, 48), (3, 200), (1, 1031))),
    _case("gaussian", draw, 1, 5, 1500, numbers=normal, exactly=False),
    *(_case(f"{str(kind)[6:]}", draw, 2, 7, 53, types=(kind, kind)) for kind in _NARROW),
    _case("bfloat16-gaussian", draw, 1, 5, 600, numbers=normal, types=(torch.bfloat16,) * 2, exactly=False),
    _case("bfloat16-and-float16", draw, 2, 7, 53, types=_NARROW),
    _case("float32-and-bfloat16", draw, 2, 7, 53, types=(torch.float32, torch.bfloat16)),
    _case("one-axis", draw, 37),
    _case("no-rows", draw, 2, 0, 5),
    _case("no-width", draw, 2, 3, 0),
    _case("strided", strided),
    _case("not-finite", not_finite),
    _case("added-to-other-layers", added),
    _case("rows-past-2-to-the-31", far_apart),
]


def _variant(pointer: str, width: int) -> Kernel:
    size, rows = (2 if pointer == "*bf16" else 4), 2880
    outputs = ("a_squared", "b_squared", "dot")
    types = {"a": pointer, "b": pointer, **dict.fromkeys(outputs, "*fp32")}
    return Kernel(
        op="transition_stats",
        name=f"{pointer[1:]}-d{width}",
        function=kernel.transition_stats_kernel,
        arguments={**types, **dict.fromkeys(("N", "a_stride", "b_stride"), "i32")},
        aligned=("a", "b", *outputs, "a_stride", "b_stride"),
        constants=lambda _: {"WIDTH": width, **kernel.tile(width)},
        options=lambda _: {"num_warps": 4, "num_stages": 3},
        tensor_cores=False,
        vector_loads=True,
        cost=Cost(f"N={rows}, D={width}", float(2 * size * rows * width + 12 * rows), other_flops=3.0 * rows * width),
    )


KERNELS = [_variant(pointer, width) for pointer in ("*fp32", "*bf16") for width in (64, 4096)]
