"""Max-sum: ties, duplicates, ragged and empty items, tokens of length zero, starts, more picks than tokens."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from vistok.ops import MaxSum

from ..table import Case
from . import k_center as shared

Arguments = dict[str, Any]
_UNIT = 2.0**-24


def check(arguments: Arguments, found: MaxSum, exactly: bool) -> None:
    """Replay the picks in float64: none may be more similar to those before than another token, up to rounding."""
    usable, k = shared.usable_tokens(arguments), arguments["k"]
    points = shared.points_of(arguments, usable, "cosine")
    assert found.indices.dtype == torch.int64 and found.indices.shape == found.similarity.shape == (len(points), k)
    assert torch.equal(found.counts, usable.sum(1).clamp(max=k))
    for item, count in enumerate(found.counts.tolist()):
        picks, similarity = found.indices[item].tolist(), found.similarity[item].double()
        assert len(set(picks[:count])) == count and bool((similarity[count:] == torch.inf).all())
        assert set(picks[count:]) <= {picks[count - 1] if count else 0}
        unlike = torch.where(usable[item], 0.0, -torch.inf).double()
        for step, pick in enumerate(picks[:count]):
            best = shared.first_of(arguments, points, usable, item) if step == 0 else shared.lowest_argmax(unlike)
            rounding = 8 * max(1, points.shape[2]) ** 0.5 * (step + 1) * _UNIT
            assert (pick == best) if exactly or step == 0 else unlike[pick] >= unlike[best] - rounding
            torch.testing.assert_close(similarity[step], -unlike[pick], rtol=0, atol=rounding)
            unlike -= points[item] @ points[item, pick]
            unlike[pick] = -torch.inf


def signs(device: str, k: int) -> Arguments:
    return {"x": shared.signs(device, k)["x"], "k": k}


def length_zero(device: str) -> Arguments:
    x = signs(device, 9)["x"]
    x[0, 5], x[1, :] = 0.0, 0.0
    return {"x": x, "k": 9}


def offset(device: str) -> Arguments:
    return {"x": 30 + shared.normal(0, 2, 41, 48, device=device), "k": 12}


def case(name: str, make: Callable[..., Arguments], *shape: int, exactly: bool = False, **options: Any) -> Case:
    return Case("max_sum", name, lambda device: make(device, *shape, **options), partial(check, exactly=exactly))


_SIZES = ((2, 37, 5, 12), (1, 23, 48, 11), (2, 19, 200, 9))
CASES = [
    *(case(f"gaussian-d{d}", shared.gaussian, b, n, d, k) for b, n, d, k in _SIZES),
    case("ties", signs, 25, exactly=True),
    case("mean-farthest", shared.gaussian, 2, 37, 5, 6, start="mean-farthest"),
    case("ties-d1", shared.ties, 2, 31, 1, 9, exactly=True),
    case("length-zero", length_zero, exactly=True),
    case("bfloat16", shared.ties, 2, 29, 5, 9, torch.bfloat16),
    case("float16", shared.ties, 2, 29, 70, 9, torch.float16),
    case("few-picks-of-many", shared.gaussian, 2, 150, 70, 2),
    case("duplicates", shared.duplicates),
    case("offset", offset),
    *(case(f"not-finite-d{d}", shared.not_finite, d) for d in (5, 70)),
    *(case(f"ragged-d{d}", shared.ragged, d) for d in (5, 70)),
    case("masked", shared.masked),
    case("given-start", shared.given_start),
    case("max-score", shared.scored),
    case("strided", shared.strided),
    case("rows-past-2-to-the-31", shared.far_apart),
    case("all-alike", lambda device: {"x": torch.ones(2, 19, 4, device=device), "k": 7}, exactly=True),
    case("more-picks-than-tokens", shared.ties, 2, 7, 5, 12),
    case("one-token", shared.ties, 2, 1, 5, 3),
    case("no-pick", shared.ties, 2, 7, 5, 0),
    case("no-token", shared.ties, 2, 0, 5, 3),
    case("no-item", shared.ties, 0, 7, 5, 3),
    case("no-width", shared.ties, 2, 7, 0, 3),
]

KERNELS = [
    shared.pairs("max_sum", False, 2880, 4096),
    *(shared.picks("max_sum", False, count, count // 10) for count in (1024, 4096)),
    shared.sweep("max_sum", False, 65536, 4096),
]
