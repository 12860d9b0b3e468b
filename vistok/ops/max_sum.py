"""Greedy max-sum diversification: the token least similar to all tokens picked so far together. B items, N tokens.

s_i = sum over picks p of cos(i, p); the next pick is argmin_i s_i, ties to the lowest index; a token of length zero is
similar to none (stage 1 of ToDRE, arXiv:2505.18757v2). Since s_i = x_i . u with u the sum of the picked unit vectors,
no N x N matrix is needed. The picks for k are the first k of those for any larger number.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from vistok.ops.dispatch import SINGLE, Backend, run
from vistok.ops.greedy_picks import Picks, pick_compiled, pick_in_torch
from vistok.ops.registration import define_op
from vistok.ops.token_choice import check_tokens, finite_tokens, first_pick, start_slots
from vistok.ops.token_points import compared, products


class MaxSum(NamedTuple):
    """indices [B, k] int64 in the order of picking; similarity [B, k] float32 or float64; counts [B] int64.

    similarity: sum of the cosines between a pick and all earlier ones, 0 for the first. An item with fewer tokens than
    k repeats its last pick with similarity inf; counts is the number of picks before that.
    """

    indices: Tensor
    similarity: Tensor
    counts: Tensor


def max_sum(
    x: Tensor,
    k: int,
    *,
    start: Tensor | str = "first",
    valid: Tensor | None = None,
    lengths: Tensor | None = None,
    scores: Tensor | None = None,
    backend: str | None = None,
) -> MaxSum:
    """Pick k of the tokens x [B, N, D], each as unlike the earlier ones as can be; no gradient passes.

    start: slots [B] int64, "first", "mean-farthest" (the direction farthest from the mean direction) or "max-score"
    (largest of scores [B, N], such as attention); one that cannot be picked gives way to the lowest that can.
    valid [B, N] bool and lengths [B]: what may be picked; tokens with NaN or infinity never are.
    backend: "reference", "cpu" or "triton" instead of the one that `vistok.ops.explain` names.

    Raises: ValueError if a shape, dtype or setting is wrong, or the back end cannot run.
    """
    allowed = check_tokens("max_sum", x, k, valid, lengths)
    begin = start_slots("max_sum", x, allowed, start, scores, "cosine")
    return MaxSum(*_op(x.detach(), allowed, begin, k, backend or ""))


def _body(x: Tensor, valid: Tensor, start: Tensor, k: int, backend: str) -> tuple[Tensor, Tensor, Tensor]:
    found: tuple[Tensor, Tensor, Tensor] = run("max_sum", BACKENDS, backend, (x, valid, start), k)
    return found


def _fake(x: Tensor, valid: Tensor, start: Tensor, k: int, *options: Any) -> tuple[Tensor, Tensor, Tensor]:
    indices = x.new_empty((x.shape[0], k), dtype=torch.int64)
    similarity = x.new_empty((x.shape[0], k), dtype=torch.promote_types(x.dtype, torch.float32))
    return indices, similarity, x.new_empty(x.shape[0], dtype=torch.int64)


_op = define_op("vistok::max_sum", _body, _fake)


def _reference(x: Tensor, valid: Tensor, start: Tensor, k: int) -> Picks:
    """x [B, N, D], valid [B, N], start [B] -> indices, similarity [B, k], counts [B], as all back ends below."""
    usable = valid & finite_tokens(x)
    points = compared(x, usable, "cosine")
    unlike = points.new_zeros(usable.shape).masked_fill_(~usable, -torch.inf)
    indices, value, counts = pick_in_torch(
        points, unlike, start, k, lambda values, center: values - products(points, center)
    )
    return indices, 0 - value, counts


def _cpu(x: Tensor, valid: Tensor, start: Tensor, k: int) -> Picks:
    indices, value, counts = pick_compiled("max_sum", x, valid, start, k)
    return indices, 0 - value, counts


def _triton(x: Tensor, valid: Tensor, start: Tensor, k: int) -> Picks:
    from vistok.triton_kernels import max_sum as kernel

    usable = valid & finite_tokens(x)
    points = compared(x, usable, "cosine")
    indices, value = kernel.least_similar(points, usable, first_pick(start, usable), k)
    return indices, 0 - value, (value > -torch.inf).sum(1)


BACKENDS = {
    "reference": Backend(_reference),
    "cpu": Backend(_cpu, "cpu", SINGLE, library="max_sum"),
    "triton": Backend(_triton, "cuda", SINGLE),
}
