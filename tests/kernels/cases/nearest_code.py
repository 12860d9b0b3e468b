"""Nearest code: ties, duplicates, offsets, numbers that are none, odd shapes and strides; its compiled variants."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from vistok.triton_kernels import nearest_code as kernel

from ..table import Case, Cost, Kernel

Arguments = dict[str, Any]
# Half of the mantissa's last bit, of what rows and codes are rounded to.
_UNIT = {"exact": 2.0**-24, "fast": 2.0**-11, "bf16": 2.0**-8}


def true_scores(x: Tensor, codebook: Tensor, metric: str) -> Tensor:
    """All scores in float64; -inf for what can never win."""
    x, codes = x.double(), codebook.double()
    if metric == "l2":
        scores = -(x[:, None] - codes).square().sum(-1)
    elif metric == "dot":
        scores = (x[:, None] * codes).sum(-1)
    else:
        scores = (x[:, None] * codes).sum(-1) / codes.norm(dim=1).clamp(min=1e-300)
    usable = x.isfinite().all(1)[:, None] & codes.isfinite().all(1)
    return scores.where(usable, -torch.inf)


def check(arguments: Arguments, found: Tensor, exactly: bool) -> None:
    x, codebook = (arguments[name].float() for name in ("x", "codebook"))
    metric, precision = arguments.get("metric", "l2"), arguments.get("precision", "exact")
    rows = x.reshape(-1, x.shape[-1])
    scores, index = true_scores(rows, codebook, metric), found.reshape(-1)
    assert found.dtype == torch.int64 and found.shape == x.shape[:-1]
    # The first of equal scores: argmax does not promise which one it takes.
    places = torch.arange(len(codebook), device=x.device)
    lowest = torch.where(scores == scores.amax(1, keepdim=True), places, len(codebook)).amin(1)
    if exactly or precision == "certified":
        assert torch.equal(index, lowest)
        return
    usable = scores[torch.arange(len(rows)), lowest] > -torch.inf
    assert torch.equal(index[~usable], lowest[~usable])
    lost = scores[torch.arange(len(rows)), lowest] - scores[torch.arange(len(rows)), index]
    centred, moved = (rows - codebook.mean(0), codebook - codebook.mean(0)) if metric == "l2" else (rows, codebook)
    longest = 1.0 if metric == "cosine" else moved.double().norm(dim=1).amax()
    reach = (centred.double().norm(dim=1) + longest) * longest
    assert bool((lost <= 8 * x.shape[-1] ** 0.5 * 4 * _UNIT[precision] * reach)[usable].all())


def normal(seed: int, *shape: int, device: str = "cpu") -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(device)


def whole(seed: int, *shape: int, device: str = "cpu") -> Tensor:
    """Small whole numbers: every back end computes them exactly, and many scores are equal."""
    return torch.randint(-2, 3, shape, generator=torch.Generator().manual_seed(seed)).float().to(device)


def gaussian(device: str, n: int, k: int, d: int, dtype: torch.dtype = torch.float32, **options: Any) -> Arguments:
    return {"x": normal(0, n, d, device=device).to(dtype), "codebook": normal(1, k, d, device=device), **options}


def ties(device: str, n: int, k: int, d: int, dtype: torch.dtype = torch.float32, **options: Any) -> Arguments:
    x, codebook = whole(0, n, d, device=device).to(dtype), whole(1, k, d, device=device).to(dtype)
    return {"x": x, "codebook": codebook, **options}


def duplicates(device: str, **options: Any) -> Arguments:
    codebook = normal(1, 20, 5, device=device).repeat(7, 1)
    return {"x": codebook[:31].flip(0), "codebook": codebook, **options}


def offset(device: str, **options: Any) -> Arguments:
    """Codes of spread 1e-3 around 30: their order is lost unless they are centred."""
    codebook = 30 + 1e-3 * normal(0, 64, 48, device=device)
    return {"x": codebook[:37] + 1e-4 * normal(1, 37, 48, device=device), "codebook": codebook, **options}


def not_finite(device: str, **options: Any) -> Arguments:
    x, codebook = whole(0, 20, 5, device=device), whole(1, 70, 5, device=device)
    x[3, 1], x[5, 0], x[7, 4] = torch.nan, torch.inf, -torch.inf
    codebook[0, 0], codebook[1, 1], codebook[66, 4] = torch.nan, torch.inf, -torch.inf
    return {"x": x, "codebook": codebook, **options}


def no_code(device: str) -> Arguments:
    return {"x": whole(0, 20, 5, device=device), "codebook": torch.full((33, 5), torch.nan, device=device)}


def strided(device: str, **options: Any) -> Arguments:
    """Rows far apart, and codes whose neighbours in memory are not neighbours in a row."""
    return {"x": whole(0, 29, 40, device=device)[:, 8:21], "codebook": whole(1, 13, 67, device=device).T, **options}


def far_apart(device: str) -> Arguments:
    """The last row lies past 2^31 elements; the memory between is never touched."""
    rows, step = 18, 1 << 27
    x = torch.empty(rows * step, dtype=torch.bfloat16, device=device).as_strided((rows, 5), (step, 1))
    x.copy_(whole(0, rows, 5))
    return {"x": x, "codebook": whole(1, 40, 5, device=device)}


def alike(device: str) -> Arguments:
    return {"x": torch.ones(19, 3, device=device), "codebook": torch.ones(130, 3, device=device)}


def batched(device: str) -> Arguments:
    return {"x": whole(0, 2, 3, 4, 5, device=device), "codebook": whole(1, 17, 5, device=device)}


def _case(name: str, make: Callable[..., Arguments], *shape: int, exactly: bool = False, **options: Any) -> Case:
    return Case("nearest_code", name, lambda device: make(device, *shape, **options), partial(check, exactly=exactly))


_METRICS = ("l2", "cosine", "dot")
CASES = [
    *(
        _case(f"gaussian-d{d}-{metric}", gaussian, n, k, d, metric=metric)
        for metric in _METRICS
        for n, k, d in ((31, 67, 1), (33, 61, 5), (17, 67, 48), (13, 37, 200))
    ),
    *(
        _case(f"ties-d{d}-{metric}-{precision}", ties, n, k, d, exactly=True, metric=metric, precision=precision)
        for metric in ("l2", "dot")
        for precision in ("exact", "fast", "bf16", "certified")
        for n, k, d in ((65, 131, 2), (17, 97, 48))
    ),
    *(_case(f"gaussian-{precision}", gaussian, 33, 61, 24, precision=precision) for precision in ("fast", "bf16")),
    *(_case(f"certified-{metric}", gaussian, 33, 61, 24, metric=metric, precision="certified") for metric in _METRICS),
    _case("certified-d200", gaussian, 13, 37, 200, precision="certified"),
    *(
        _case(f"ties-{str(dtype).removeprefix('torch.')}", ties, 40, 70, 5, exactly=True, dtype=dtype)
        for dtype in (torch.bfloat16, torch.float16)
    ),
    *(_case(f"duplicates-{metric}", duplicates, exactly=True, metric=metric) for metric in ("l2", "dot")),
    _case("duplicates-certified", duplicates, metric="cosine", precision="certified"),
    _case("offset", offset),
    _case("offset-certified", offset, precision="certified"),
    *(_case(f"not-finite-{metric}", not_finite, exactly=metric != "cosine", metric=metric) for metric in _METRICS),
    _case("not-finite-certified", not_finite, precision="certified"),
    _case("no-code-is-finite", no_code, exactly=True),
    _case("strided", strided, exactly=True),
    _case("strided-certified", strided, precision="certified", metric="dot"),
    _case("rows-past-2-to-the-31", far_apart, exactly=True),
    _case("all-alike", alike, exactly=True),
    _case("batched", batched, exactly=True),
    _case("no-rows", ties, 0, 9, 5, exactly=True),
    _case("one-code", ties, 7, 1, 5, exactly=True),
]

_N = _K = 16384
# The launcher copies what is not aligned, so no other variant is ever launched.
_ALIGNED = ("x", "codes", "bias", "centre", "index_out", "best_out", "second_out", "x_stride", "codes_stride")


def _cost(precision: str, width: int, size: int) -> Cost:
    products = {"exact": 3, "fast": 1, "bf16": 1, "certified": 0}[precision]
    multiplied = 2.0 * _N * _K * width
    return Cost(
        shape=f"N=K={_N}, D={width}",
        bytes=float(size * (_N + _K) * width + 8 * _N),
        tensor_core_flops=products * multiplied,
        # Per score: bias, comparison and two selections; certified multiplies without tensor cores.
        other_flops=4.0 * _N * _K + (multiplied / 2 if precision == "certified" else 0),
        tensor_core_rate=989e12 if precision == "bf16" else 494.7e12,
    )


def _variant(precision: str, width: int) -> Kernel:
    pointer = "*bf16" if precision == "bf16" else "*fp32"
    types = {"x": pointer, "codes": pointer, "index_out": "*i32", "N": "i32", "K": "i32", "codes_per_split": "i32"}
    names = ("bias", "centre", "best_out", "second_out")

    def options(target: str) -> dict[str, int]:
        tile = kernel.config(precision, width, target)
        return {"num_warps": tile.warps, "num_stages": tile.stages}

    return Kernel(
        op="nearest_code",
        name=f"{precision}-d{width}",
        function=kernel.nearest_code_kernel,
        arguments={**dict.fromkeys(names, "*fp32"), **types, "x_stride": "i32", "codes_stride": "i32"},
        aligned=_ALIGNED,
        constants=lambda target: kernel.constants(precision, width, target),
        options=options,
        tensor_cores=precision != "certified",
        vector_loads=True,
        cost=_cost(precision, width, 2 if precision == "bf16" else 4),
    )


KERNELS = [
    *(_variant("exact", width) for width in (5, 32, 64, 200, 256)),
    *(_variant("bf16", width) for width in (16, 64, 256)),
    *(_variant("fast", width) for width in (16, 64, 256)),
    *(_variant("certified", width) for width in (16, 256)),
]
