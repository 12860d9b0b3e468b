"""Attention of a few query rows over all keys, and its mean per key, without the attention map of all rows.

P_hsj = exp(z_hsj) / sum over visible j' of exp(z_hsj'), z_hsj = scale q_hs . k_gj; mean_j = mean of P_hsj over heads h
and over the rows s that see any key. B items, H heads in groups that share one of G key heads, S query rows, N keys, D
head width, C the columns asked for. Key j is visible to row s iff j <= causal_offset + s and the masks allow both.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vistok.ops.cpu import library
from vistok.ops.dispatch import SINGLE, Backend, run
from vistok.ops.registration import define_op

_CELLS = 1 << 22
# As in numbers.h.
_ELEMENTS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}


class AttentionRows(NamedTuple):
    """mean [B, C], lse [B, H, S] and rows [B, H, S, C] (if asked for) in float32, or float64 for float64 inputs.

    lse: logarithm of the sum over visible keys of exp(z), -inf where there is none.
    """

    mean: Tensor
    lse: Tensor
    rows: Tensor | None


def attention_rows(
    q: Tensor,
    k: Tensor,
    *,
    scale: float | None = None,
    q_mask: Tensor | None = None,
    k_mask: Tensor | None = None,
    causal_offset: int | Tensor | None = None,
    image_slice: slice | None = None,
    lse: Tensor | None = None,
    return_rows: bool = False,
    backend: str | None = None,
) -> AttentionRows:
    """Softmax of q [B, H, S, D] over k [B, G, N, D], and its mean over heads and rows; gradients reach q, k and lse.

    scale: 1 / sqrt(D) if not given. q_mask [B, S], k_mask [B, N]: bool, True = counts. causal_offset: position of row 0
    among the keys, an int or [B] integers; None lets every row see every key. image_slice: keys to return columns of;
    the normaliser covers all visible keys in any case. lse: [B, H, S] of the same rows and keys, where attention has
    returned it; it is then used, not computed. A row that sees no key is 0 and does not count.
    backend: "reference", "cpu" or "triton" instead of the one that `vistok.ops.explain` names.

    Raises: ValueError if shapes or dtypes disagree, the slice has a step, or the back end cannot run.
    """
    _check(q, k, q_mask, k_mask, lse)
    allowed = q.new_ones(k.shape[0], k.shape[2], dtype=torch.bool) if k_mask is None else k_mask
    last = _last_visible(q, k, q_mask, k_mask, causal_offset)
    first, stop = _columns(image_slice, k.shape[2])
    scale = q.shape[3] ** -0.5 if scale is None else float(scale)
    mean, found, rows = _op(q, k, last, allowed, lse, scale, first, stop, return_rows, backend or "")
    return AttentionRows(mean, found, rows if return_rows else None)


def _check(q: Tensor, k: Tensor, q_mask: Tensor | None, k_mask: Tensor | None, lse: Tensor | None) -> None:
    fits = q.ndim == k.ndim == 4 and q.shape[0] == k.shape[0] and q.shape[3] == k.shape[3] > 0
    if not fits or not k.shape[1] or not q.shape[1] or q.shape[1] % k.shape[1]:
        raise ValueError(
            f"attention_rows: expected q [B, H, S, D] and k [B, G, N, D] with D > 0 and H a multiple of G, got "
            f"{list(q.shape)} and {list(k.shape)}"
        )
    if not (q.is_floating_point() and k.is_floating_point()):
        raise ValueError(f"attention_rows: expected floating-point q and k, got {q.dtype} and {k.dtype}")
    for name, mask, shape in (
        ("q_mask", q_mask, (q.shape[0], q.shape[2])),
        ("k_mask", k_mask, (k.shape[0], k.shape[2])),
    ):
        if mask is not None and (mask.shape != shape or mask.dtype != torch.bool):
            raise ValueError(f"attention_rows: expected {name} bool {list(shape)}, got {mask.dtype} {list(mask.shape)}")
    if lse is not None and (lse.shape != q.shape[:3] or not lse.is_floating_point()):
        raise ValueError(f"attention_rows: expected lse float {list(q.shape[:3])}, got {lse.dtype} {list(lse.shape)}")


def _last_visible(
    q: Tensor, k: Tensor, q_mask: Tensor | None, k_mask: Tensor | None, causal_offset: int | Tensor | None
) -> Tensor:
    """[B, S] int64: the last key that a row may see, as far as k_mask allows it, and -1 where it sees none."""
    batch, _, rows, _ = q.shape
    keys = k.shape[2]
    last = torch.full((batch, rows), keys - 1, device=q.device)
    if causal_offset is not None:
        offset = torch.as_tensor(causal_offset, device=q.device)
        if offset.is_floating_point() or offset.shape not in ((), (batch,)):
            raise ValueError(
                f"attention_rows: expected causal_offset an int or integers [{batch}], got {offset.dtype} "
                f"{list(offset.shape)}"
            )
        last = (offset.reshape(-1, 1) + torch.arange(rows, device=q.device)).clamp(-1, keys - 1).expand(batch, rows)
    if q_mask is not None:
        last = last.masked_fill(~q_mask, -1)
    if k_mask is not None and keys:
        seen = k_mask.cumsum(1).gather(1, last.clamp(min=0))
        last = last.masked_fill(seen == 0, -1)
    return last.contiguous()


def _columns(image_slice: slice | None, keys: int) -> tuple[int, int]:
    first, stop, step = (image_slice or slice(None)).indices(keys)
    if step != 1:
        raise ValueError(f"attention_rows: expected image_slice with step 1, got {image_slice}")
    return first, max(first, stop)


def _body(
    q: Tensor,
    k: Tensor,
    last: Tensor,
    allowed: Tensor,
    lse: Tensor | None,
    scale: float,
    first: int,
    stop: int,
    return_rows: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    known = None if lse is None else lse.to(_computed_in(q, k)).masked_fill(last[:, None] < 0, -torch.inf)
    total, found, rows = run(
        "attention_rows", BACKENDS, backend, (q, k, last, allowed), known, scale, first, stop, return_rows
    )
    return total / _counted(q, last)[:, None], found, rows


def _counted(q: Tensor, last: Tensor) -> Tensor:
    """[B]: the number of weights that a mean is taken over, 1 if there is none."""
    return ((last >= 0).sum(1) * q.shape[1]).clamp(min=1)


def _fake(
    q: Tensor,
    k: Tensor,
    last: Tensor,
    allowed: Tensor,
    lse: Tensor | None,
    scale: float,
    first: int,
    stop: int,
    return_rows: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    kind, columns = _computed_in(q, k), stop - first
    rows = q.new_empty((*q.shape[:3], columns) if return_rows else (0,), dtype=kind)
    return q.new_empty(q.shape[0], columns, dtype=kind), q.new_empty(q.shape[:3], dtype=kind), rows


def _remember(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    q, k, last, allowed, lse, ctx.scale, ctx.first, ctx.stop, ctx.return_rows, _ = inputs
    ctx.save_for_backward(q, k, last, allowed, output[1])
    ctx.lse_type = None if lse is None else lse.dtype


def _backward(ctx: Any, of_mean: Tensor, of_lse: Tensor, of_rows: Tensor) -> tuple[Any, ...]:
    """With w the gradient of P: that of z is P (w - sum_j P_j w_j + of_lse); of a given lse, of_lse - sum_j P_j w_j."""
    q, k, last, allowed, lse = ctx.saved_tensors
    of_q, of_k = torch.zeros_like(q, dtype=lse.dtype), torch.zeros_like(k, dtype=lse.dtype)
    of_known = torch.zeros_like(lse)
    of_mean = of_mean / _counted(q, last)[:, None]
    for item, part, scores in _tiles(q, k, last, allowed, ctx.scale):
        weights = (scores - lse[item, :, part, None]).masked_fill(scores == -torch.inf, -torch.inf).exp()
        of_weights = torch.zeros_like(weights)
        of_weights[..., ctx.first : ctx.stop] = of_mean[item] + (of_rows[item, :, part] if ctx.return_rows else 0)
        drawn = (weights * of_weights).sum(2)
        of_known[item, :, part] = of_lse[item, :, part] - drawn
        pull = of_lse[item, :, part] - drawn if ctx.lse_type is None else torch.zeros_like(drawn)
        of_scores = ctx.scale * weights * (of_weights + pull[..., None])
        queries = q[item, :, part].to(lse.dtype).reshape(k.shape[1], -1, q.shape[3])
        grouped = of_scores.reshape(*queries.shape[:2], k.shape[2])
        of_q[item, :, part] = (grouped @ k[item].to(lse.dtype)).reshape(of_q[item, :, part].shape)
        of_k[item] += grouped.transpose(1, 2) @ queries
    lse_gradient = None if ctx.lse_type is None else of_known.masked_fill(last[:, None] < 0, 0).to(ctx.lse_type)
    return of_q.to(q.dtype), of_k.to(k.dtype), None, None, lse_gradient, *(None,) * 5


_op = define_op("vistok::attention_rows", _body, _fake, _backward, _remember)


def _computed_in(q: Tensor, k: Tensor) -> torch.dtype:
    return torch.float64 if torch.float64 in (q.dtype, k.dtype) else torch.float32


def _tiles(q: Tensor, k: Tensor, last: Tensor, allowed: Tensor, scale: float) -> Iterator[tuple[int, slice, Tensor]]:
    """Item, rows and their scores [H, rows, N], -inf where a key is not visible; a bounded number at a time."""
    kind, keys = _computed_in(q, k), torch.arange(k.shape[2], device=k.device)
    step = max(1, _CELLS // max(1, q.shape[1] * k.shape[2]))
    for item in range(len(q)):
        grouped = k[item].to(kind).transpose(1, 2)
        for start in range(0, q.shape[2], step):
            part = slice(start, start + step)
            rows = q[item, :, part].to(kind)
            scores = rows.reshape(k.shape[1], -1, q.shape[3]) @ grouped * scale
            visible = (keys <= last[item, part, None]) & allowed[item]
            yield item, part, scores.reshape(*rows.shape[:2], k.shape[2]).where(visible, -torch.inf)


def _reference(
    q: Tensor,
    k: Tensor,
    last: Tensor,
    allowed: Tensor,
    lse: Tensor | None,
    scale: float,
    first: int,
    stop: int,
    return_rows: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Sum over heads and rows [B, C], lse [B, H, S], rows [B, H, S, C] or [0], as all back ends below."""
    kind, columns = _computed_in(q, k), stop - first
    total = q.new_zeros(len(q), columns, dtype=kind)
    found = q.new_empty(q.shape[:3], dtype=kind) if lse is None else lse.clone()
    rows = q.new_empty((*q.shape[:3], columns) if return_rows else (0,), dtype=kind)
    for item, part, scores in _tiles(q, k, last, allowed, scale):
        if lse is None:
            found[item, :, part] = scores.logsumexp(2)
        shown = scores[..., first:stop]
        weights = (shown - found[item, :, part, None]).masked_fill(shown == -torch.inf, -torch.inf).exp()
        total[item] += weights.sum((0, 1))
        if return_rows:
            rows[item, :, part] = weights
    return total, found, rows


def _cpu(
    q: Tensor,
    k: Tensor,
    last: Tensor,
    allowed: Tensor,
    lse: Tensor | None,
    scale: float,
    first: int,
    stop: int,
    return_rows: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    attend = library.function("attention_rows")
    queries, allowed = (q.float() * scale).contiguous(), allowed.contiguous()
    keys = k if k.stride(3) == 1 else k.contiguous()
    total = torch.empty(len(q), stop - first)
    found = torch.empty(q.shape[:3]) if lse is None else lse.clone(memory_format=torch.contiguous_format)
    rows = torch.empty((*q.shape[:3], stop - first) if return_rows else (0,))
    pointers = [tensor.data_ptr() for tensor in (queries, keys, last, allowed, total, found, rows)]
    pointers[-1] *= return_rows
    sizes = (len(q), q.shape[1], k.shape[1], q.shape[2], k.shape[2], k.shape[3], *keys.stride()[:3], first, stop)
    if attend(*pointers, lse is not None, _ELEMENTS[k.dtype], *sizes, torch.get_num_threads()):
        raise MemoryError(f"attention_rows: no memory for the weights of {q.shape[2]} rows over {k.shape[2]} keys")
    return total, found, rows


def _triton(
    q: Tensor,
    k: Tensor,
    last: Tensor,
    allowed: Tensor,
    lse: Tensor | None,
    scale: float,
    first: int,
    stop: int,
    return_rows: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    from vistok.triton_kernels import attention_rows as kernel

    visible = kernel.Visible(last, allowed)
    found = kernel.row_lse(q, k, visible, scale) if lse is None else lse.clone()
    total, rows = kernel.column_sums(q, k, visible, found, scale, first, stop, return_rows)
    return total, found, rows


BACKENDS = {
    "reference": Backend(_reference),
    "cpu": Backend(_cpu, "cpu", SINGLE, library="attention_rows"),
    "triton": Backend(_triton, "cuda", SINGLE),
}
