"""Padded batches without what is not kept, as varlen attention takes them, and back. B items, N slots, T kept slots.

packed_t = x_{b, n} with source_t = b N + n, items in order; cu_seqlens_b is where item b begins. Halting is `compact`
with keep = probability <= threshold, a prefix keep = arange(N) < length; a gate multiplies the T packed rows.
"""

from collections.abc import Sequence
from typing import Any, Generic, NamedTuple, TypeVar, overload

import torch
from torch import Tensor

from vistok.ops.check_ids import check_ids
from vistok.ops.cpu import library
from vistok.ops.dispatch import Backend, run
from vistok.ops.kept_places import kept_places, slots_at
from vistok.ops.registration import define_op

Rows = TypeVar("Rows", Tensor, list[Tensor])


class Compact(NamedTuple, Generic[Rows]):
    """packed [T, ...] or a list of them, cu_seqlens [B+1] int32, source [T] int64, max_len.

    source: b * N + n of every packed row, -1 in the tail that `max_total` adds. max_len: slots of the longest item, or
    with `max_total` no fewer than these.
    """

    packed: Rows
    cu_seqlens: Tensor
    source: Tensor
    max_len: int


@overload
def compact(
    x: Tensor, keep: Tensor, *, lengths: Tensor | None = ..., max_total: int | None = ..., backend: str | None = ...
) -> Compact[Tensor]: ...
@overload
def compact(
    x: Sequence[Tensor],
    keep: Tensor,
    *,
    lengths: Tensor | None = ...,
    max_total: int | None = ...,
    backend: str | None = ...,
) -> Compact[list[Tensor]]: ...
def compact(
    x: Tensor | Sequence[Tensor],
    keep: Tensor,
    *,
    lengths: Tensor | None = None,
    max_total: int | None = None,
    backend: str | None = None,
) -> Compact[Tensor] | Compact[list[Tensor]]:
    """Take the kept slots of x [B, N, ...], any dtype, or of several tensors alike in B and N; gradients reach x.

    Strided views are read in place: keys [B, H, N, D] go in as keys.transpose(1, 2) and come out as [T, H, D].
    keep: mask [B, N] bool, slots ascending, or slots [B, K] int64, in their order. lengths [B]: only the first of
    them count. max_total: T, rows behind the kept ones are zero; without it, a mask or lengths synchronize with the
    device once. backend: "reference", "cpu" or "triton" instead of the one that `vistok.ops.explain` names.

    Raises: ValueError if shapes or dtypes disagree, the back end cannot run, or (on the CPU, outside of compiled
    graphs) a slot does not exist or more than max_total are kept; elsewhere the latter is a RuntimeError.
    """
    tensors = [x] if isinstance(x, Tensor) else list(x)
    _check(tensors, keep, lengths)
    places, cu_seqlens, max_len = kept_places(keep, lengths, max_total)
    from_mask = keep.dtype == torch.bool
    source = places if from_mask else slots_at(keep, places, tensors[0].shape[1])
    packed = [rows_at(tensor, source, distinct=from_mask, backend=backend) for tensor in tensors]
    if isinstance(x, Tensor):
        return Compact(packed[0], cu_seqlens, source, max_len)
    return Compact(packed, cu_seqlens, source, max_len)


def scatter_back(
    packed: Tensor, source: Tensor, shape: tuple[int, int], fill: float = 0.0, *, backend: str | None = None
) -> Tensor:
    """Put packed [T, ...] back to `source` [T] of `compact`: [B, N, ...] of shape (B, N), `fill` in all other slots.

    Gradients reach `packed`. backend: as in `compact`. Raises: ValueError if shapes or dtypes disagree, the back end
    cannot run, or (on the CPU) a place does not exist or is named twice.
    """
    batch, slots = shape
    if packed.ndim < 1 or source.shape != packed.shape[:1] or source.dtype != torch.int64:
        raise ValueError(
            f"scatter_back: expected packed [T, ...] and source int64 [T], got {list(packed.shape)} and "
            f"{list(source.shape)} {source.dtype}"
        )
    rows: Tensor = _scatter_op(packed, source, batch * slots, fill, backend or "")
    return rows.reshape(batch, slots, *packed.shape[1:])


def rows_at(
    x: Tensor, source: Tensor, *, fill: float = 0.0, distinct: bool = False, backend: str | None = None
) -> Tensor:
    """Rows of x [B, N, ...] at source [T] int64, b * N + n, or -1 for a row of `fill` -> [T, ...]; differentiable.

    distinct: no row is taken twice, which makes the gradient a plain copy.
    """
    taken: Tensor = _op(x, source, fill, distinct, backend or "")
    return taken


def _check(tensors: list[Tensor], keep: Tensor, lengths: Tensor | None) -> None:
    if not tensors or any(tensor.ndim < 2 or tensor.shape[:2] != tensors[0].shape[:2] for tensor in tensors):
        given = [list(tensor.shape) for tensor in tensors]
        raise ValueError(f"compact: expected tensors [B, N, ...] alike in B and N, got {given}")
    batch, slots = tensors[0].shape[:2]
    if keep.dtype == torch.bool:
        if keep.shape != (batch, slots):
            raise ValueError(f"compact: expected a keep mask {[batch, slots]}, got {list(keep.shape)}")
    elif keep.dtype != torch.int64 or keep.ndim != 2 or len(keep) != batch:
        raise ValueError(
            f"compact: expected keep bool {[batch, slots]} or slots int64 [{batch}, K], got {list(keep.shape)} "
            f"{keep.dtype}"
        )
    if lengths is not None and (lengths.shape != (batch,) or lengths.dtype not in (torch.int32, torch.int64)):
        raise ValueError(f"compact: expected lengths int64 [{batch}], got {list(lengths.shape)} {lengths.dtype}")


def _body(x: Tensor, source: Tensor, fill: float, distinct: bool, backend: str) -> Tensor:
    found: Tensor = run("compact", BACKENDS, backend, (x, source), fill)
    return found


def _fake(x: Tensor, source: Tensor, fill: float, distinct: bool, backend: str) -> Tensor:
    return x.new_empty((source.shape[0], *x.shape[2:]))


def _remember(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, source, _, ctx.distinct, ctx.backend = inputs
    ctx.shape = x.shape
    ctx.save_for_backward(source)


def _backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
    (source,) = ctx.saved_tensors
    rows = ctx.shape[0] * ctx.shape[1]
    if ctx.distinct:
        of_rows = _scatter_op(gradient, source, rows, 0.0, ctx.backend)
    else:
        of_rows = add_rows(gradient, source, rows)
    return of_rows.reshape(ctx.shape), None, None, None, None


_op = define_op("vistok::compact", _body, _fake, _backward, _remember)


def _scatter_body(packed: Tensor, source: Tensor, rows: int, fill: float, backend: str) -> Tensor:
    if source.device.type == "cpu":
        check_ids("scatter_back", source, rows)
    # amax: what a place named twice gets would else be left to chance.
    origin = torch.full((rows + 1,), -1, device=source.device)
    order = torch.arange(len(source), device=source.device)
    origin = origin.scatter_reduce(0, torch.where(source < 0, rows, source), order, "amax")[:rows]
    if source.device.type == "cpu" and int((origin >= 0).sum()) != int((source >= 0).sum()):
        raise ValueError("scatter_back: expected every place at most once in source; it names one twice")
    found: Tensor = run("scatter_back", BACKENDS, backend, (packed[None], origin), fill)
    return found


def _scatter_fake(packed: Tensor, source: Tensor, rows: int, fill: float, backend: str) -> Tensor:
    return packed.new_empty((rows, *packed.shape[1:]))


def _scatter_remember(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.backend = inputs[4]
    ctx.save_for_backward(inputs[1])


def _scatter_backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
    (source,) = ctx.saved_tensors
    return _op(gradient[None], source, 0.0, True, ctx.backend), None, None, None, None


_scatter_op = define_op("vistok::scatter_back", _scatter_body, _scatter_fake, _scatter_backward, _scatter_remember)


def add_rows(values: Tensor, ids: Tensor, rows: int) -> Tensor:
    """Sums [rows, ...] of values [T, ...] by ids [T] int64, -1 counting nowhere: in float32 at least, in order.

    Always the same bits: on CUDA index_put sorts, elsewhere index_add goes from row to row.
    """
    wide = torch.promote_types(values.dtype, torch.float32)
    out = torch.zeros((rows + 1, *values.shape[1:]), dtype=wide, device=values.device)
    ids = torch.where(ids < 0, rows, ids)
    summed = (
        out.index_put((ids,), values.to(wide), accumulate=True)
        if values.is_cuda
        else out.index_add(0, ids, values.to(wide))
    )
    return summed[:rows].to(values.dtype)


def _reference(x: Tensor, source: Tensor, fill: float) -> Tensor:
    """x [B, N, ...], source [T] -> [T, ...], as all back ends below."""
    if source.device.type == "cpu":
        check_ids("compact", source, x.shape[0] * x.shape[1])
    missing = source < 0
    if not x.shape[0] * x.shape[1]:
        return x.new_full((len(source), *x.shape[2:]), fill)
    out = x.flatten(0, 1).index_select(0, source.clamp(min=0))
    if x.is_cuda or bool(missing.any()):
        out.masked_fill_(missing.reshape(-1, *(1,) * (out.ndim - 1)), fill)
    return out


def _blocks(x: Tensor) -> Tensor:
    """x [B, N, ...] as [B, N, H, W] with neighbours in W: a view wherever strides allow one."""
    if x.is_contiguous():
        return x.view(*x.shape[:2], 1, -1)
    if x.ndim == 2:
        return x[:, :, None, None]
    row = x[0, 0]
    if row.is_contiguous():
        return x.flatten(2)[:, :, None]
    if row.ndim > 1 and row[0].is_contiguous():
        return x.flatten(3)
    return x.contiguous().flatten(2)[:, :, None]


def _cpu(x: Tensor, source: Tensor, fill: float) -> Tensor:
    if not x.numel():
        return _reference(x, source, fill)
    copy = library.function("compact")
    blocks, source = _blocks(x), source.contiguous()
    out, size = x.new_empty((len(source), *x.shape[2:])), x.element_size()
    filling = x.new_full((1,), fill) if fill else None
    pointers = (blocks.data_ptr(), source.data_ptr(), 0 if filling is None else filling.data_ptr(), out.data_ptr())
    strides = (stride * size for stride in blocks.stride()[:3])
    items, slots, count, width = blocks.shape
    sizes = (len(source), items * slots, slots, count, width * size, size)
    failure = copy(*pointers, *sizes, *strides, torch.get_num_threads())
    if failure == 1:
        raise MemoryError(f"compact: no memory for a row of {count * width} numbers")
    if failure:
        check_ids("compact", source, items * slots)
    return out


def _triton(x: Tensor, source: Tensor, fill: float) -> Tensor:
    from vistok.triton_kernels import compact as kernel

    if not x.numel():
        return _reference(x, source, fill)
    rows: Tensor = kernel.copy_rows(_blocks(x), source, x.new_full((1,), fill))
    return rows.reshape(len(source), *x.shape[2:])


def _real(x: Tensor, *others: Tensor) -> str | None:
    return "it does not copy complex numbers" if x.is_complex() else None


BACKENDS = {
    "reference": Backend(_reference),
    "cpu": Backend(_cpu, "cpu", library="compact", fits=_real),
    "triton": Backend(_triton, "cuda", fits=_real),
}
