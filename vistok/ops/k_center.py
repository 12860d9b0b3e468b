"""Greedy k-center: the token farthest from all tokens picked so far, again and again. B items, N tokens, D width.

m_i = min over picks p of d(i, p); the next pick is argmax_i m_i, ties to the lowest index (Gonzalez 1985: within 2x of
the best cover). d(a, b) = |a - b|^2 ("l2"), or 1 - cos(a, b) ("cosine"), computed as half of |a/|a| - b/|b||^2, in
which a token of length zero stays zero. The picks for k are the first k of those for any larger number.

The Triton back end takes distances of tokens wider than 64 from products, n_a + n_b - 2 a.b of tokens moved by their
mean, unless few of many tokens are picked: these are right to a few units in the last place of the longest |a|^2.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from vistok.ops.certified import deciding_score
from vistok.ops.dispatch import SINGLE, Backend, run
from vistok.ops.greedy_picks import Picks, pick_compiled, pick_in_torch
from vistok.ops.registration import define_op
from vistok.ops.token_choice import check_tokens, finite_tokens, first_pick, start_slots
from vistok.ops.token_points import compared, moved_by_mean, squared_distances

METRICS = ("l2", "cosine")


class KCenter(NamedTuple):
    """indices [B, k] int64 in the order of picking; radius [B, k] float32 or float64; counts [B] int64.

    radius: distance of a pick to its nearest earlier one, inf for the first. No token is farther than radius[i] from
    the i picks before, so that (radius > r).sum(1) picks cover an item within r. An item with fewer tokens than k
    repeats its last pick with radius -inf; counts is the number of picks before that.
    """

    indices: Tensor
    radius: Tensor
    counts: Tensor


def k_center(
    x: Tensor,
    k: int,
    metric: str = "l2",
    *,
    start: Tensor | str = "first",
    valid: Tensor | None = None,
    lengths: Tensor | None = None,
    scores: Tensor | None = None,
    certified: bool = False,
    backend: str | None = None,
) -> KCenter:
    """Pick k of the tokens x [B, N, D] that cover them; no gradient passes.

    metric: "l2" (squared Euclidean) or "cosine". start: slots [B] int64, "first", "mean-farthest" (the token farthest
    from the mean) or "max-score" (largest of scores [B, N]); one that cannot be picked gives way to the lowest that
    can. valid [B, N] bool and lengths [B]: what may be picked; tokens with NaN or infinity never are. certified: picks
    by float64 distances, the same on every machine and back end; on a GPU they are computed by torch.
    backend: "reference", "cpu" or "triton" instead of the one that `vistok.ops.explain` names.

    Raises: ValueError if a shape, dtype or setting is wrong, or the back end cannot run.
    """
    if metric not in METRICS:
        raise ValueError(f"k_center: expected metric 'l2' or 'cosine', got {metric!r}")
    allowed = check_tokens("k_center", x, k, valid, lengths)
    begin = start_slots("k_center", x, allowed, start, scores, metric)
    return KCenter(*_op(x.detach(), allowed, begin, k, metric, certified, backend or ""))


def _body(
    x: Tensor, valid: Tensor, start: Tensor, k: int, metric: str, certified: bool, backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    found: tuple[Tensor, Tensor, Tensor]
    found = run("k_center", BACKENDS, backend, (x, valid, start), k, metric, certified)
    return found


def _fake(x: Tensor, valid: Tensor, start: Tensor, k: int, *options: Any) -> tuple[Tensor, Tensor, Tensor]:
    indices = x.new_empty((x.shape[0], k), dtype=torch.int64)
    radius = x.new_empty((x.shape[0], k), dtype=torch.promote_types(x.dtype, torch.float32))
    return indices, radius, x.new_empty(x.shape[0], dtype=torch.int64)


_op = define_op("vistok::k_center", _body, _fake)


def _reference(x: Tensor, valid: Tensor, start: Tensor, k: int, metric: str, certified: bool) -> Picks:
    """x [B, N, D], valid [B, N], start [B] -> indices [B, k], radius [B, k], counts [B], as all back ends below."""
    usable = valid & finite_tokens(x)
    points = _exact_points(x, usable, metric) if certified else compared(x, usable, metric)
    distances = _exact_distances if certified else squared_distances
    nearest = points.new_full(usable.shape, torch.inf).masked_fill_(~usable, -torch.inf)
    indices, radius, counts = pick_in_torch(
        points, nearest, start, k, lambda values, center: torch.minimum(values, distances(points, center))
    )
    return indices, _scaled(radius, metric).to(torch.promote_types(x.dtype, torch.float32)), counts


def _scaled(radius: Tensor, metric: str) -> Tensor:
    return radius / 2 if metric == "cosine" else radius


def _exact_points(x: Tensor, usable: Tensor, metric: str) -> Tensor:
    """The points that certified distances are taken of, [B, N, D] float64; lengths summed in the shared order."""
    points = x.double().masked_fill(~usable[:, :, None], 0)
    if metric == "l2":
        return points
    rows = points.flatten(0, 1)
    norms = deciding_score(rows, rows, "dot").sqrt().reshape(*usable.shape, 1)
    return points / norms.where(norms > 0, 1)


def _exact_distances(points: Tensor, center: Tensor) -> Tensor:
    rows = [-deciding_score(item, one.expand_as(item), "l2") for item, one in zip(points, center, strict=True)]
    return torch.stack(rows) if rows else points.new_zeros(points.shape[:2])


def _cpu(x: Tensor, valid: Tensor, start: Tensor, k: int, metric: str, certified: bool) -> Picks:
    return pick_compiled("k_center", x, valid, start, k, METRICS.index(metric), certified)


def _triton(x: Tensor, valid: Tensor, start: Tensor, k: int, metric: str, certified: bool) -> Picks:
    if certified:
        return _reference(x, valid, start, k, metric, certified)
    from vistok.triton_kernels import k_center as kernel

    usable = valid & finite_tokens(x)
    points = compared(x, usable, metric)
    points = moved_by_mean(points, usable) if metric == "l2" else points
    indices, radius = kernel.farthest_first(points, usable, first_pick(start, usable), k)
    return indices, _scaled(radius, metric), (radius > -torch.inf).sum(1)


BACKENDS = {
    "reference": Backend(_reference),
    "cpu": Backend(_cpu, "cpu", SINGLE, library="k_center"),
    "triton": Backend(_triton, "cuda", SINGLE),
}
