"""Which tokens to merge into which: the r closest pairs of even and odd tokens. B items, N tokens, C width.

A = even positions, B = odd ones; every a has the partner argmax_b cos(a, b), ties to the lowest b; the r tokens a of
largest cosine, ties to the lowest a, join their partners (ToMe, arXiv:2210.09461, section 3). Order is kept: the slots
of the result are the tokens that remain, by position.
"""

import torch
from torch import Tensor

from vistok.ops.codebook_scores import ROWS, largest_score, move_rows, prepare
from vistok.ops.cpu import library
from vistok.ops.dispatch import SINGLE, Backend, run
from vistok.ops.registration import define_op
from vistok.tokens import Assignment

_LAST = -2.0  # less than any cosine
# As in numbers.h.
_ELEMENTS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}


def bipartite_match(
    metric: Tensor, r: int, protect: int = 0, *, lengths: Tensor | None = None, backend: str | None = None
) -> Assignment:
    """Match tokens by metric [B, N, C] float, such as the keys' mean over heads, to merge r of them; no gradient.

    `vistok.ops.merge`, `unmerge` and `TokenTensor.merge` take the result, which has N - r slots, r being at most the
    number of even tokens that may join. After two matches a token's slot is second.slot.gather(1, first.slot).
    protect: leading tokens that neither join another one nor are joined. lengths [B]: valid tokens; the others are
    dropped (slot -1), and an item with fewer than r even tokens that may join merges these. A token of length zero has
    cosine 0 with all; those with NaN or infinity are never chosen as partners and join last. backend: "reference",
    "cpu" or "triton" instead of the one that `vistok.ops.explain` names.

    Raises: ValueError if a shape, dtype or number is wrong, or the back end cannot run.
    """
    _check(metric, r, protect, lengths)
    count = metric.shape[1]
    position = torch.arange(count, device=metric.device)
    valid = torch.ones(metric.shape[:2], dtype=torch.bool, device=metric.device)
    if lengths is not None:
        valid = position < lengths[:, None]
    counted = valid & ((position % 2 == 0) | (position >= protect))
    partner, score = _op(metric.detach(), counted, backend or "")
    joins = valid[:, ::2] & (position[::2] >= protect)
    # Of an item with no even or no odd token to take, nothing is merged.
    chances = joins.sum(1).where(valid[:, 1::2].sum(1) > protect // 2, 0)
    most = (count + 1) // 2 - (protect + 1) // 2 if count // 2 > protect // 2 else 0
    r = min(r, max(0, most))
    joined = _best(score.masked_fill(~joins, -torch.inf), chances, r)
    target = torch.where(joined, 2 * partner.clamp(min=protect // 2) + 1, position[::2])
    leads_to = torch.slice_scatter(position.repeat(len(metric), 1), target, 1, 0, count, 2)
    slot = (valid & (leads_to == position)).cumsum(1) - 1
    return Assignment(slot.gather(1, leads_to).where(valid, -1), count - r)


def _check(metric: Tensor, r: int, protect: int, lengths: Tensor | None) -> None:
    if metric.ndim != 3 or not metric.is_floating_point():
        raise ValueError(f"bipartite_match: expected a float metric [B, N, C], got {list(metric.shape)} {metric.dtype}")
    if r < 0 or protect < 0:
        raise ValueError(f"bipartite_match: expected r >= 0 and protect >= 0, got {r} and {protect}")
    if lengths is not None and (lengths.shape != metric.shape[:1] or lengths.dtype not in (torch.int32, torch.int64)):
        raise ValueError(
            f"bipartite_match: expected lengths int64 {[len(metric)]}, got {list(lengths.shape)} {lengths.dtype}"
        )


def _best(score: Tensor, chances: Tensor, r: int) -> Tensor:
    """True [B, A] bool at the largest scores [B, A], min(r, chances [B]) of them, the lowest index among equals."""
    order = score.sort(dim=1, descending=True, stable=True).indices[:, :r]
    wins = torch.arange(r, device=score.device) < chances[:, None]
    return torch.zeros_like(score, dtype=torch.bool).scatter(1, order, wins)


def _body(metric: Tensor, counted: Tensor, backend: str) -> tuple[Tensor, Tensor]:
    partner, score = run("bipartite_match", BACKENDS, backend, (metric, counted))
    return partner, score.where(score.isfinite(), _LAST)


def _fake(metric: Tensor, counted: Tensor, backend: str) -> tuple[Tensor, Tensor]:
    shape = (metric.shape[0], (metric.shape[1] + 1) // 2)
    kind = torch.promote_types(metric.dtype, torch.float32)
    return metric.new_empty(shape, dtype=torch.int64), metric.new_empty(shape, dtype=kind)


_op = define_op("vistok::bipartite_match", _body, _fake)


def _unit(metric: Tensor, counted: Tensor) -> Tensor:
    """Tokens [..., C] at length one in float32 or float64, zeros as they are; NaN where one does not count by counted
    [...] or is not finite."""
    points = metric.to(torch.promote_types(metric.dtype, torch.float32))
    norm: Tensor = torch.linalg.vector_norm(points, dim=-1, keepdim=True, dtype=torch.float64)
    norm = norm.where(norm > 0, 1).where(norm.isfinite() & counted[..., None], torch.nan)
    return points / norm.to(points.dtype)


def _reference(metric: Tensor, counted: Tensor) -> tuple[Tensor, Tensor]:
    """metric [B, N, C], counted [B, N] -> odd token of largest cosine for every even one, [B, (N + 1) // 2] int64 as
    index among the odd ones, and the cosine; 0 and -inf where there is none. So do all back ends below."""
    items, count, _ = metric.shape
    partner = torch.zeros(items, (count + 1) // 2, dtype=torch.int64, device=metric.device)
    score = torch.full_like(partner, -torch.inf, dtype=torch.promote_types(metric.dtype, torch.float32))
    for item in range(items if count > 1 else 0):
        points = _unit(metric[item], counted[item])
        book = prepare(points[1::2], "dot")
        for start in range(0, partner.shape[1], ROWS):
            part = slice(start, start + ROWS)
            rows, finite = move_rows(points[::2][part], book)
            best, index = largest_score(rows, book)
            partner[item, part], score[item, part] = index.where(finite, 0), best.where(finite, -torch.inf)
    return partner, score


def _cpu(metric: Tensor, counted: Tensor) -> tuple[Tensor, Tensor]:
    match = library.function("bipartite_match")
    metric, counted = metric.contiguous(), counted.contiguous()
    partner = torch.empty(len(metric), (metric.shape[1] + 1) // 2, dtype=torch.int64)
    score = torch.empty(partner.shape)
    pointers = (tensor.data_ptr() for tensor in (metric, counted, partner, score))
    if match(*pointers, _ELEMENTS[metric.dtype], *metric.shape, torch.get_num_threads()):
        raise MemoryError(f"bipartite_match: no memory to pack {metric.numel() // 2} numbers")
    return partner, score


def _triton(metric: Tensor, counted: Tensor) -> tuple[Tensor, Tensor]:
    from vistok.triton_kernels import bipartite_match as kernel

    partner, score = kernel.best_partners(_unit(metric, counted))
    return partner, score


BACKENDS = {
    "reference": Backend(_reference),
    "cpu": Backend(_cpu, "cpu", SINGLE, library="bipartite_match"),
    "triton": Backend(_triton, "cuda", SINGLE),
}
