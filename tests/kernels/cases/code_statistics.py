"""Code statistics: empty codes, one code for all, ids of -1, strides; its compiled variants."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from vistok.triton_kernels import code_statistics as kernel

from vistok.ops.code_statistics import CodeStatistics

from ..table import Case, Cost, Kernel

Arguments = dict[str, Any]


def check(arguments: Arguments, found: CodeStatistics, exactly: bool) -> None:
    """Against a one-hot product in float64; whole numbers must be met to the bit."""
    x, codebook = arguments["x"].double(), arguments["codebook"].double()
    rows, ids = x.reshape(-1, x.shape[-1]), arguments["indices"].reshape(-1)
    won = (ids[:, None] == torch.arange(len(codebook), device=ids.device)).double()
    missed = won.sum(1) * (rows - codebook[ids.clamp(min=0)]).square().sum(1)
    assert torch.equal(found.counts, won.sum(0).long())
    tolerance = {"rtol": 0, "atol": 0} if exactly else {"rtol": 1e-5, "atol": 1e-4}
    torch.testing.assert_close(found.sums, (won.T @ rows).float(), **tolerance)
    torch.testing.assert_close(found.squared_error, missed.sum().float(), **tolerance)


def draw(device: str, n: int, k: int, d: int, whole: bool, dtype: torch.dtype = torch.float32) -> Arguments:
    generator = torch.Generator().manual_seed(0)
    x, codebook = torch.randn(n, d, generator=generator), torch.randn(k, d, generator=generator)
    if whole:
        x, codebook = (2 * x).round(), (2 * codebook).round()
    ids = torch.randint(-1, k, (n,), generator=generator)
    return {"x": x.to(device, dtype), "indices": ids.to(device), "codebook": codebook.to(device)}


def one_code(device: str) -> Arguments:
    """All rows of one code: many pieces to be summed."""
    arguments = draw(device, 1300, 5, 8, True)
    return {**arguments, "indices": torch.full((1300,), 3, device=device)}


def strided(device: str) -> Arguments:
    arguments = draw(device, 31, 17, 40, True)
    return {
        "x": arguments["x"].T.contiguous().T[:, 3:16],
        "indices": arguments["indices"].repeat_interleave(2)[::2],
        "codebook": arguments["codebook"][:, 1:14],
    }


def no_code(device: str) -> Arguments:
    arguments = draw(device, 31, 17, 5, True)
    return {**arguments, "indices": torch.full((31,), -1, device=device)}


def batched(device: str) -> Arguments:
    arguments = draw(device, 24, 7, 5, True)
    return {**arguments, "x": arguments["x"].reshape(2, 3, 4, 5), "indices": arguments["indices"].reshape(2, 3, 4)}


def _case(name: str, make: Callable[..., Arguments], *values: Any, exactly: bool = True) -> Case:
    return Case("code_statistics", name, lambda device: make(device, *values), partial(check, exactly=exactly))


CASES = [
    *(_case(f"whole-d{d}", draw, n, k, d, True) for n, k, d in ((61, 7, 1), (67, 31, 5), (31, 13, 48), (13, 5, 200))),
    _case("gaussian", draw, 101, 23, 24, False, exactly=False),
    _case("bfloat16", draw, 67, 31, 5, True, torch.bfloat16),
    _case("float16", draw, 67, 31, 5, True, torch.float16),
    _case("more-codes-than-rows", draw, 5, 300, 3, True),
    _case("one-code-wins-all", one_code),
    _case("no-rows", draw, 0, 9, 5, True),
    _case("nobody-counts", no_code),
    _case("strided", strided),
    _case("batched", batched),
]

_N, _K, _D = 1 << 20, 8192, 64
_TYPES = {"rows": "*fp32", "order": "*i64", "starts": "*i64", "ends": "*i64", "out": "*fp32", "rows_stride": "i32"}
_ERROR_TYPES = {"x": "*fp32", "ids": "*i64", "codes": "*fp32", "out": "*fp32", "N": "i32"}


def _sums(pointer: str, ordered: bool) -> Kernel:
    size = 2 if pointer == "*bf16" else 4
    return Kernel(
        op="code_statistics",
        name=f"sums-{pointer[1:]}" + ("-ordered" if ordered else ""),
        function=kernel.segment_sum_kernel,
        arguments={**_TYPES, "rows": pointer},
        aligned=("rows", "order", "starts", "ends", "out", "rows_stride"),
        constants=lambda _: {"WIDTH": _D, "ORDERED": ordered, "ROWS": kernel.ROWS, "COLUMNS": kernel.COLUMNS},
        options=lambda _: {"num_warps": 4, "num_stages": 3},
        tensor_cores=False,
        vector_loads=True,
        cost=Cost(f"N={_N}, K={_K}, D={_D}", float(size * _N * _D + 8 * _N + 4 * _K * _D), other_flops=float(_N * _D)),
    )


def _error(pointer: str) -> Kernel:
    size = 2 if pointer == "*bf16" else 4
    return Kernel(
        op="code_statistics",
        name=f"error-{pointer[1:]}",
        function=kernel.squared_error_kernel,
        arguments={**_ERROR_TYPES, "x": pointer, "x_stride": "i32", "codes_stride": "i32"},
        aligned=("x", "ids", "codes", "out", "x_stride", "codes_stride"),
        constants=lambda _: {"WIDTH": _D, "ROWS": kernel.ROWS, "COLUMNS": kernel.COLUMNS},
        options=lambda _: {"num_warps": 4, "num_stages": 3},
        tensor_cores=False,
        vector_loads=True,
        cost=Cost(f"N={_N}, K={_K}, D={_D}", float(size * _N * _D + 8 * _N + 4 * _K * _D), other_flops=3.0 * _N * _D),
    )


KERNELS = [_sums("*fp32", False), _sums("*bf16", False), _sums("*fp32", True), _error("*fp32"), _error("*bf16")]
