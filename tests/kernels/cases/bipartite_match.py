"""Bipartite match: ties, duplicates, protected and padded tokens, numbers that are none; its compiled variants."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from vistok.triton_kernels import bipartite_match as kernel

from vistok.tokens import Assignment

from ..table import Case, Cost, Kernel

Arguments = dict[str, Any]


def cosines(metric: Tensor) -> Tensor:
    """Of every even with every odd token of one item, float64 [A, B]; NaN where a number is not finite."""
    points = metric.double()
    norm = points.norm(dim=1, keepdim=True)
    points = torch.where(norm.isfinite(), points / norm.where(norm > 0, 1), torch.nan)
    return points[::2] @ points[1::2].T


def best(score: Tensor, allowed: range) -> tuple[int, float]:
    """First of the largest numbers, of the allowed ones; the first allowed one and -2 where there is none."""
    found = (allowed[0], -2.0)
    for odd in allowed:
        if float(score[odd]) > found[1]:
            found = (odd, float(score[odd]))
    return found


def expected(metric: Tensor, r: int, protect: int, length: int, total: int) -> list[int]:
    """The slots of one item, by loops."""
    score = cosines(metric[:length])
    evens, odds = range((protect + 1) // 2, (length + 1) // 2), range(protect // 2, length // 2)
    pairs = [(even, *best(score[even], odds)) for even in evens] if odds else []
    pairs.sort(key=lambda pair: -pair[2])
    joins = {2 * even: 2 * odd + 1 for even, odd, _ in pairs[: max(r, 0)]}
    rank = {token: slot for slot, token in enumerate(t for t in range(length) if t not in joins)}
    return [rank[joins.get(token, token)] if token < length else -1 for token in range(total)]


def check(arguments: Arguments, found: Assignment, exactly: bool) -> None:
    metric, r, protect = arguments["metric"], arguments["r"], arguments.get("protect", 0)
    items, total, _ = metric.shape
    lengths = arguments["lengths"].tolist() if "lengths" in arguments else [total] * items
    most = (total + 1) // 2 - (protect + 1) // 2 if total // 2 > protect // 2 else 0
    assert found.count == total - min(r, max(0, most)) and found.slot.dtype == torch.int64
    wanted = [expected(metric[b].cpu(), r, protect, int(lengths[b]), total) for b in range(items)]
    if exactly:
        assert found.slot.tolist() == wanted
        return
    for item, (slot, best_slot) in enumerate(zip(found.slot.tolist(), wanted, strict=True)):
        # Rounding may change a choice, but not how close the pairs are.
        assert sorted(set(slot)) == sorted(set(best_slot))
        assert abs(closeness(metric[item], slot) - closeness(metric[item], best_slot)) < 1e-4


def closeness(metric: Tensor, slot: list[int]) -> float:
    """Sum of the cosines of all pairs that an assignment of one item merges."""
    score = cosines(metric)
    kept = {place: token for token, place in enumerate(slot) if token % 2}
    joined = [token for token, place in enumerate(slot) if token % 2 == 0 and place in kept]
    return float(sum(score[token // 2, kept[slot[token]] // 2] for token in joined))


def normal(device: str, *shape: int, dtype: torch.dtype = torch.float32, **options: Any) -> Arguments:
    return {"metric": torch.randn(*shape, generator=torch.Generator().manual_seed(0)).to(device, dtype), **options}


def signs(device: str, *shape: int, dtype: torch.dtype = torch.float32, **options: Any) -> Arguments:
    """Four numbers of equal size and any sign, the others zero: cosines are exact, and many are equal."""
    generator = torch.Generator().manual_seed(0)
    size = 2.0 ** torch.randint(-3, 4, shape[:2], generator=generator)
    metric = torch.zeros(shape)
    metric[..., : min(4, shape[2])] = torch.randn(*shape[:2], min(4, shape[2]), generator=generator).sign()
    return {"metric": (metric * size[..., None]).to(device, dtype), **options}


def zeros(device: str) -> Arguments:
    """Tokens of length zero among others, and opposite ones: cosines 0 and -1."""
    metric = torch.ones(1, 10, 4, device=device)
    metric[:, ::2] *= -1
    metric[:, [3, 4]] = 0
    return {"metric": metric, "r": 3}


def not_finite(device: str, r: int) -> Arguments:
    arguments = signs(device, 2, 16, 4, r=r)
    metric = arguments["metric"]
    metric[:, 0, 1], metric[:, 4, 0], metric[:, 5, 3], metric[:, 7, 0] = torch.nan, torch.inf, -torch.inf, torch.nan
    metric[1, 1::2] = torch.nan
    return arguments


def extreme(device: str) -> Arguments:
    """Numbers whose squares overflow or vanish in float32."""
    arguments = signs(device, 1, 20, 4, r=5)
    arguments["metric"][:, ::3] *= 1e30
    arguments["metric"][:, 1::3] *= 1e-30
    return arguments


def strided(device: str) -> Arguments:
    return {"metric": signs(device, 2, 30, 16)["metric"][:, ::2, :8].transpose(0, 1)[3:].transpose(0, 1), "r": 4}


def far_apart(device: str) -> Arguments:
    """The last item lies past 2^31 elements; the memory between is never touched."""
    step = 1 << 31
    metric = torch.empty(step + 64, dtype=torch.bfloat16, device=device).as_strided((2, 9, 4), (step, 4, 1))
    metric.copy_(signs(device, 2, 9, 4)["metric"])
    return {"metric": metric, "r": 3}


def _case(name: str, make: Callable[..., Arguments], *values: Any, exactly: bool = True, **options: Any) -> Case:
    return Case(
        "bipartite_match", name, lambda device: make(device, *values, **options), partial(check, exactly=exactly)
    )


CASES = [
    *(_case(f"ties-d{d}", signs, 2, n, d, r=r) for n, d, r in ((31, 1, 9), (67, 5, 20), (34, 48, 17), (13, 200, 3))),
    *(_case(f"gaussian-d{d}", normal, 2, n, d, r=9, exactly=False) for n, d in ((67, 2), (37, 48), (31, 200))),
    *(
        _case(f"ties-{str(dtype).removeprefix('torch.')}", signs, 2, 34, 5, r=9, dtype=dtype)
        for dtype in (torch.bfloat16, torch.float16)
    ),
    *(_case(f"protect-{count}", signs, 2, 21, 4, r=20, protect=count) for count in (1, 2, 3, 20, 21)),
    _case("more-than-there-are", signs, 1, 15, 4, r=100),
    _case("merge-none", signs, 1, 15, 4, r=0),
    _case("zeros", zeros),
    *(_case(f"not-finite-r{r}", not_finite, r) for r in (3, 8)),
    _case("extreme", extreme),
    _case("strided", strided),
    _case("items-past-2-to-the-31", far_apart),
    *(_case(f"tokens-{n}", signs, 2, n, 4, r=3) for n in (0, 1, 2, 3)),
    _case("no-items", signs, 0, 7, 4, r=2),
]
_LENGTHS = (21, 0, 1, 2, 3, 10)
CASES += [
    Case(
        "bipartite_match",
        f"ragged-protect-{protect}",
        lambda device, protect=protect: {
            **signs(device, len(_LENGTHS), 21, 4, r=6, protect=protect),
            "lengths": torch.tensor(_LENGTHS, device=device),
        },
        partial(check, exactly=True),
    )
    for protect in (0, 1, 2)
]

_B, _N = 32, 576
_TYPES = {"points": "*fp32", "partner": "*i64", "product_out": "*fp32", "EVEN": "i32", "ODD": "i32"}


def _variant(width: int) -> Kernel:
    return Kernel(
        op="bipartite_match",
        name=f"d{width}",
        function=kernel.bipartite_match_kernel,
        arguments={**_TYPES, "item_stride": "i32", "stride": "i32"},
        # The launcher copies what is not aligned.
        aligned=("points", "partner", "product_out", "item_stride", "stride"),
        constants=lambda target: kernel.constants(width, target),
        options=lambda _: {"num_warps": 4, "num_stages": 2},
        tensor_cores=True,
        vector_loads=True,
        cost=Cost(
            f"B={_B}, N={_N}, C={width}",
            float(4 * _B * _N * width + 6 * _B * _N),
            tensor_core_flops=3 * 0.5 * _B * _N * _N * width,
            other_flops=_B * _N * _N,
            tensor_core_rate=494.7e12,
        ),
    )


KERNELS = [_variant(width) for width in (5, 64, 256, 1024)]
