"""k-center: ties, duplicates, ragged and empty items, starts, offsets, one pick and more picks than tokens."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from vistok.triton_kernels import greedy_picks as kernel

from vistok.ops import KCenter

from ..table import Case, Cost, Kernel

Arguments = dict[str, Any]
_UNIT = 2.0**-24


def usable_tokens(arguments: Arguments) -> Tensor:
    """[B, N] bool: valid, within its length and finite."""
    x = arguments["x"]
    usable = x.isfinite().all(2)
    if "valid" in arguments:
        usable = usable & arguments["valid"]
    if "lengths" in arguments:
        usable = usable & (torch.arange(x.shape[1], device=x.device) < arguments["lengths"][:, None])
    return usable


def points_of(arguments: Arguments, usable: Tensor, metric: str) -> Tensor:
    x = arguments["x"].double().where(usable[:, :, None], 0)
    return x if metric == "l2" else x / x.norm(dim=2, keepdim=True).clamp(min=1e-300)


def first_of(arguments: Arguments, points: Tensor, usable: Tensor, item: int) -> int:
    """The slot where an item begins, by the words of the docstring."""
    start, slots = arguments.get("start", "first"), usable[item].nonzero()[:, 0]
    if start == "mean-farthest":
        far = (points[item] - points[item][slots].mean(0)).square().sum(1).where(usable[item], -1)
        return int(far.argmax())
    if start == "max-score":
        scores = arguments["scores"][item].double()
        return max(slots.tolist(), key=lambda slot: (-torch.inf if scores[slot].isnan() else scores[slot], -slot))
    if isinstance(start, Tensor) and usable[item, start[item]]:
        return int(start[item])
    return int(slots[0])


def lowest_argmax(values: Tensor) -> int:
    return int((values == values.max()).nonzero()[0])


def check(arguments: Arguments, found: KCenter, exactly: bool) -> None:
    """Replay the picks in float64: each must be as far from those before as any other token, up to rounding."""
    usable, metric, k = usable_tokens(arguments), arguments.get("metric", "l2"), arguments["k"]
    points = points_of(arguments, usable, metric)
    assert found.indices.dtype == torch.int64 and found.indices.shape == found.radius.shape == (len(points), k)
    assert torch.equal(found.counts, usable.sum(1).clamp(max=k))
    relative = 8 * max(1, points.shape[2]) * _UNIT
    for item, count in enumerate(found.counts.tolist()):
        picks, radius = found.indices[item].tolist(), found.radius[item].double()
        assert len(set(picks[:count])) == count and bool((radius[count:] == -torch.inf).all())
        assert set(picks[count:]) <= {picks[count - 1] if count else 0}
        nearest = torch.where(usable[item], torch.inf, -torch.inf).double()
        # Products of wide tokens are right to their own last place, those of narrow ones are not taken.
        centred = points[item] - points[item][usable[item]].mean(0)
        slack = relative * float(centred.square().sum(1).max()) if points.shape[2] > 64 and count else 0.0
        for step, pick in enumerate(picks[:count]):
            best = first_of(arguments, points, usable, item) if step == 0 else lowest_argmax(nearest)
            assert (pick == best) if exactly or step == 0 else nearest[pick] >= nearest[best] * (1 - relative) - slack
            scale = 0.5 if metric == "cosine" else 1.0
            torch.testing.assert_close(radius[step], scale * nearest[pick], rtol=relative, atol=slack + relative)
            nearest = torch.minimum(nearest, (points[item] - points[item, pick]).square().sum(1))
            nearest[pick] = -torch.inf


def normal(seed: int, *shape: int, device: str = "cpu") -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(device)


def whole(seed: int, *shape: int, device: str = "cpu") -> Tensor:
    """Small whole numbers: every back end computes their distances exactly, and many are equal."""
    return torch.randint(-2, 3, shape, generator=torch.Generator().manual_seed(seed)).float().to(device)


def gaussian(device: str, b: int, n: int, d: int, k: int, **options: Any) -> Arguments:
    return {"x": normal(0, b, n, d, device=device), "k": k, **options}


def ties(device: str, b: int, n: int, d: int, k: int, dtype: torch.dtype = torch.float32, **options: Any) -> Arguments:
    return {"x": whole(0, b, n, d, device=device).to(dtype), "k": k, **options}


def signs(device: str, k: int) -> Arguments:
    """Four of 16 numbers are 1 or -1: unit vectors and their distances are exact."""
    draw = torch.Generator().manual_seed(0)
    place = torch.rand(2, 40, 16, generator=draw).argsort(2)[:, :, :4]
    x = torch.zeros(2, 40, 16).scatter_(2, place, torch.randint(0, 2, place.shape, generator=draw) * 2.0 - 1.0)
    return {"x": x.to(device), "k": k, "metric": "cosine"}


def duplicates(device: str, **options: Any) -> Arguments:
    return {"x": normal(0, 1, 9, 5, device=device).repeat(2, 4, 1), "k": 20, **options}


def offset(device: str, d: int, **options: Any) -> Arguments:
    """Tokens of spread 1e-3 around 30."""
    return {"x": 30 + 1e-3 * normal(0, 2, 41, d, device=device), "k": 12, **options}


def not_finite(device: str, d: int, **options: Any) -> Arguments:
    x = whole(0, 2, 30, d, device=device)
    x[0, 0, 1], x[0, 4, 0], x[1, 29, 2] = torch.nan, torch.inf, -torch.inf
    return {"x": x, "k": 31, **options}


def ragged(device: str, d: int, **options: Any) -> Arguments:
    """Padding holds NaN and numbers that would win; one item is empty, one has a single token."""
    x, lengths = whole(0, 5, 23, d), torch.tensor([23, 11, 0, 1, 17])
    outside = torch.arange(23) >= lengths[:, None]
    x[outside] = torch.tensor([torch.nan, 1e30]).repeat(len(x[outside]) * d)[: len(x[outside]) * d].reshape(-1, d)
    return {"x": x.to(device), "k": 13, "lengths": lengths.to(device), **options}


def masked(device: str, **options: Any) -> Arguments:
    valid = torch.rand(4, 37, generator=torch.Generator().manual_seed(3)) < 0.6
    valid[1] = False
    return {"x": whole(0, 4, 37, 5, device=device), "k": 9, "valid": valid.to(device), **options}


def scored(device: str) -> Arguments:
    scores = whole(1, 4, 37, device=device)
    scores[2, :9] = torch.nan
    return {**masked(device), "start": "max-score", "scores": scores}


def given_start(device: str) -> Arguments:
    return {**masked(device), "start": torch.tensor([36, 2, 0, 17], device=device)}


def strided(device: str, **options: Any) -> Arguments:
    """Tokens and numbers that are no neighbours in memory."""
    return {"x": whole(0, 13, 3, 80, device=device).permute(1, 2, 0)[:, 5:47], "k": 9, **options}


def far_apart(device: str, **options: Any) -> Arguments:
    """The last token lies past 2^31 elements; the memory between is never touched."""
    tokens, step = 18, 1 << 27
    x = torch.empty(tokens * step, dtype=torch.bfloat16, device=device).as_strided((1, tokens, 5), (0, step, 1))
    x.copy_(whole(0, 1, tokens, 5))
    return {"x": x, "k": 9, **options}


def case(name: str, make: Callable[..., Arguments], *shape: int, exactly: bool = True, **options: Any) -> Case:
    return Case("k_center", name, lambda device: make(device, *shape, **options), partial(check, exactly=exactly))


_SIZES = ((2, 31, 1, 9), (2, 37, 5, 12), (1, 23, 48, 11), (2, 19, 200, 9))
CASES = [
    *(
        case(f"gaussian-d{d}-{metric}", gaussian, b, n, d, k, metric=metric, exactly=False)
        for metric in ("l2", "cosine")
        for b, n, d, k in _SIZES
        if d > 1 or metric == "l2"
    ),
    *(case(f"ties-d{d}", ties, b, n, d, k) for b, n, d, k in _SIZES),
    case("ties-cosine", signs, 25),
    *(
        case(f"certified-d{d}-{metric}", gaussian, b, n, d, k, metric=metric, certified=True)
        for metric in ("l2", "cosine")
        for b, n, d, k in _SIZES[1:]
    ),
    case("ties-certified", ties, 2, 37, 5, 20, certified=True),
    case("certified-offset", offset, 48, certified=True),
    case("ties-bfloat16", ties, 2, 29, 5, 9, torch.bfloat16),
    case("ties-float16", ties, 2, 29, 70, 9, torch.float16),
    case("few-picks-of-many", ties, 2, 150, 5, 2),
    case("few-picks-of-many-cosine", gaussian, 2, 150, 70, 2, metric="cosine", exactly=False),
    case("duplicates", duplicates, exactly=False),
    case("duplicates-cosine", duplicates, metric="cosine", exactly=False),
    *(case(f"offset-d{d}", offset, d, exactly=False) for d in (48, 200)),
    *(case(f"not-finite-d{d}", not_finite, d) for d in (5, 70)),
    *(case(f"ragged-d{d}", ragged, d) for d in (5, 70)),
    case("masked", masked),
    case("masked-certified", masked, certified=True),
    case("given-start", given_start),
    case("max-score", scored),
    case("mean-farthest", gaussian, 2, 37, 5, 6, start="mean-farthest", exactly=False),
    case("mean-farthest-cosine", gaussian, 2, 37, 5, 6, start="mean-farthest", metric="cosine", exactly=False),
    case("strided", strided),
    case("rows-past-2-to-the-31", far_apart),
    case("all-alike", lambda device: {"x": torch.ones(2, 19, 3, device=device), "k": 7}),
    case("more-picks-than-tokens", ties, 2, 7, 5, 12),
    case("one-token", ties, 2, 1, 5, 3),
    case("no-pick", ties, 2, 7, 5, 0),
    case("no-token", ties, 2, 0, 5, 3),
    case("no-item", ties, 0, 7, 5, 3),
    case("no-width", ties, 2, 7, 0, 3),
]

PAIR = {"points": "*fp32", "squares": "*fp32", "out": "*fp32", "N": "i32"}
PICK = {"matrix": "*fp32", "values": "*fp32", "start": "*i64", "index_out": "*i64", "value_out": "*fp32"}
SWEEP = {
    **dict.fromkeys(("points", "values", "best_in", "best_out", "value_out"), "*fp32"),
    **dict.fromkeys(("place_in", "place_out", "index_out"), "*i64"),
}


def pairs(op: str, nearest: bool, count: int, width: int) -> Kernel:
    """The comparison of all pairs of tokens."""
    settings = partial(kernel.pair_settings, width, nearest)
    compare = str(settings("sm_90")["COMPARE"])
    multiplied = 2.0 * count * count * width
    return Kernel(
        op=op,
        name=f"{compare}-d{width}",
        function=kernel.pair_kernel,
        arguments=PAIR,
        aligned=("points", "squares", "out", "N"),
        constants=settings,
        options=lambda target: {"num_warps": 4, "num_stages": kernel.pair_stages(target)},
        tensor_cores=compare != "differences",
        vector_loads=compare != "differences",
        cost=Cost(
            f"N={count}, D={width}",
            4.0 * (count * width + count * count),
            tensor_core_flops=3 * multiplied if compare != "differences" else 0.0,
            other_flops=multiplied / 2 if compare == "differences" else 2.0 * count * count,
            tensor_core_rate=494.7e12,
        ),
    )


def picks(op: str, nearest: bool, count: int, k: int) -> Kernel:
    """The choice from a matrix of pairs."""
    return Kernel(
        op=op,
        name=f"pick-n{count}",
        function=kernel.pick_kernel,
        arguments={**PICK, "N": "i32", "k": "i32"},
        aligned=("matrix", "values", "start", "index_out", "value_out", "N"),
        constants=lambda _: {"BLOCK": count, "NEAREST": nearest},
        options=lambda _: {"num_warps": kernel.pick_warps(count), "num_stages": 2},
        tensor_cores=False,
        vector_loads=True,
        cost=Cost(f"B=1, N={count}, k={k}", 4.0 * k * count, serial_steps=float(k)),
    )


def sweep(op: str, nearest: bool, count: int, width: int) -> Kernel:
    """The comparison of all tokens with one pick, of which a launch takes as long as a serial step."""
    constants = {
        "WIDTH": width,
        "CHUNK": kernel.SWEPT_CHUNK,
        "TILE": kernel.SWEPT,
        "PARTS": kernel.SWEPT_PARTS,
        "NEAREST": nearest,
    }
    return Kernel(
        op=op,
        name=f"sweep-d{width}",
        function=kernel.sweep_kernel,
        arguments={**SWEEP, "N": "i32", "k": "i32", "step": "i32", "tiles": "i32"},
        aligned=(*SWEEP, "N"),
        constants=lambda _: constants,
        options=lambda _: {"num_warps": 4, "num_stages": 3},
        tensor_cores=False,
        vector_loads=True,
        cost=Cost(f"N={count}, D={width}, one step", 4.0 * count * width, other_flops=2.0 * count * width),
    )


KERNELS = [
    pairs("k_center", True, 4096, 1024),
    pairs("k_center", True, 4096, 64),
    *(picks("k_center", True, count, count // 4) for count in (1024, 4096, 16384)),
    sweep("k_center", True, 65536, 1024),
]
