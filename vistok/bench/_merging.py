"""Cases of vistok.bench.ops that merge tokens in pairs, against the form of the ToMe paper (arXiv:2210.09461)."""

from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from vistok.bench.timing import Candidates
from vistok.ops import bipartite_match, merge
from vistok.tokens import Assignment


class _Plan(NamedTuple):
    """Places among even tokens that stay [B, A-r, 1] and that join [B, r, 1] the odd tokens `into` [B, r, 1]."""

    stay: Tensor
    join: Tensor
    into: Tensor


def cases() -> Iterator[tuple[str, Candidates]]:
    """Yield each case and its candidates, vistok first."""
    for dtype in (torch.float32, torch.bfloat16):
        yield f"merge 144 of 576, 8 x 1024 {str(dtype)[6:]}", merge_candidates(8, 576, 144, 1024, dtype)
    # Keys of one head, as in the paper, and whole tokens.
    for width in (64, 1024):
        yield f"bipartite_match 144 of 576, 8 x {width}", match_candidates(8, 576, 144, width)


def merge_candidates(batch: int, tokens: int, joined: int, width: int, dtype: torch.dtype) -> Candidates:
    """Means weighted by sizes of pairs that are known. Raises: AssertionError if they differ."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch, tokens, width, generator=generator).to(dtype)
    sizes = torch.randint(1, 4, (batch, tokens), generator=generator).float()
    plan = _match(torch.randn(batch, tokens, 64, generator=generator), joined)
    assignment, order = _assignment(plan, tokens)
    ours = merge(x, assignment, sizes)
    values, totals = _scatter_reduced(x, plan, sizes)
    tolerance = 1e-5 if dtype == torch.float32 else 3e-2
    placed = values.gather(1, order[..., None].expand(-1, -1, width))
    torch.testing.assert_close(ours.values, placed, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(ours.sizes, totals.gather(1, order).float())
    torch.testing.assert_close(ours.values, _index_added(x, assignment, sizes), rtol=tolerance, atol=tolerance)
    return {
        "vistok": partial(merge, x, assignment, sizes),
        "ToMe scatter_reduce": partial(_scatter_reduced, x, plan, sizes),
        "torch index_add": partial(_index_added, x, assignment, sizes),
    }


def match_candidates(batch: int, tokens: int, joined: int, width: int) -> Candidates:
    """The most similar pairs. Raises: AssertionError if the pairs of one are less similar than those of the other."""
    metric = torch.randn(batch, tokens, width, generator=torch.Generator().manual_seed(0))
    theirs, _ = _assignment(_match(metric, joined), tokens)
    similarities = [_similarity(metric, found) for found in (bipartite_match(metric, joined), theirs)]
    torch.testing.assert_close(*similarities, rtol=1e-5, atol=0)
    return {"vistok": partial(bipartite_match, metric, joined), "ToMe matmul": partial(_match, metric, joined)}


def _match(metric: Tensor, joined: int) -> _Plan:
    units = metric / metric.norm(dim=-1, keepdim=True)
    best, into = (units[:, ::2] @ units[:, 1::2].mT).max(-1)
    order = best.argsort(-1, descending=True)[..., None]
    join = order[:, :joined]
    return _Plan(order[:, joined:], join, into[..., None].gather(1, join))


def _scatter_reduced(x: Tensor, plan: _Plan, sizes: Tensor) -> tuple[Tensor, Tensor]:
    """Means [B, S, D] and sizes [B, S], first the even tokens that stay, then all odd ones."""
    weights = sizes[..., None].to(x.dtype)
    totals = _summed(weights, plan)
    return _summed(x * weights, plan) / totals, totals[..., 0]


def _summed(x: Tensor, plan: _Plan) -> Tensor:
    stay, join, into = (places.expand(-1, -1, x.shape[2]) for places in plan)
    even, odd = x[:, ::2], x[:, 1::2]
    return torch.cat([even.gather(1, stay), odd.scatter_reduce(1, into, even.gather(1, join), "sum")], 1)


def _index_added(x: Tensor, assignment: Assignment, sizes: Tensor) -> Tensor:
    """Means [B, S, D] in the order of the slots, summed in the dtype of x."""
    slot, count = assignment
    into = (slot + torch.arange(len(x))[:, None] * count).flatten()
    weights = sizes.flatten().to(x.dtype)
    weighted = x.flatten(0, 1) * weights[:, None]
    sums = x.new_zeros(len(x) * count, x.shape[2]).index_add_(0, into, weighted)
    totals = x.new_zeros(len(x) * count).index_add_(0, into, weights)
    return (sums / totals[:, None]).reshape(len(x), count, x.shape[2])


def _assignment(plan: _Plan, tokens: int) -> tuple[Assignment, Tensor]:
    """The slots of the pairs in ascending order of tokens, and the row of the peer's result for each slot [B, S]."""
    odds = torch.arange(1, tokens, 2).expand(len(plan.stay), -1)
    kept, order = torch.cat([2 * plan.stay[..., 0], odds], 1).sort(1)
    slot = torch.zeros(len(kept), tokens, dtype=torch.int64)
    slot.scatter_(1, kept, torch.arange(kept.shape[1]).expand_as(kept))
    joined = slot.gather(1, 2 * plan.into[..., 0] + 1)
    return Assignment(slot.scatter_(1, 2 * plan.join[..., 0], joined), kept.shape[1]), order


def _similarity(metric: Tensor, found: Assignment) -> Tensor:
    """Sum of the cosines of all pairs of each item, float64 [B]."""
    units = torch.nn.functional.normalize(metric.double(), dim=-1)
    odd = units[:, 1::2]
    slots = torch.zeros(len(units), found.count, units.shape[2], dtype=torch.float64)
    slots.scatter_(1, found.slot[:, 1::2, None].expand_as(odd), odd)
    partner = slots.gather(1, found.slot[:, ::2, None].expand(-1, -1, units.shape[2]))
    return (units[:, ::2] * partner).sum((1, 2))
