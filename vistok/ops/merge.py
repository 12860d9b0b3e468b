"""Merge tokens that share a slot, and give every token its slot's value back. B items, N tokens, S slots.

y_s = sum_i w_i x_i / sum_i w_i over the tokens i of slot s, w their sizes, which become sum_i w_i (ToMe,
arXiv:2210.09461, section 3). The only token of a slot stays as it is to the bit, an empty slot is zero.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from vistok.ops.check_ids import check_ids
from vistok.ops.compact import add_rows, rows_at
from vistok.ops.cpu import library
from vistok.ops.dispatch import SINGLE, Backend, run
from vistok.ops.registration import define_op
from vistok.tokens import Assignment

# As in numbers.h.
_ELEMENTS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}


class Merged(NamedTuple):
    """values [B, S, ...] as the tokens; sizes [B, S] float32, or float64 if tokens or their sizes are."""

    values: Tensor
    sizes: Tensor


def merge(x: Tensor, assignment: Assignment, sizes: Tensor | None = None, *, backend: str | None = None) -> Merged:
    """Means of the float tokens x [B, N, ...] of each slot, weighted by sizes [B, N] (None: 1), S = assignment.count.

    Sums are float32 at least, in ascending order of tokens, the same bits every time on a back end. Slot -1 drops a
    token, whatever its numbers are. Gradients reach x and sizes. backend: "reference", "cpu" or "triton" instead of
    the one that `vistok.ops.explain` names.

    Raises: ValueError if shapes or dtypes disagree, the back end cannot run, or (on the CPU) a slot is outside
    -1..count-1.
    """
    if x.ndim < 2 or not x.is_floating_point():
        raise ValueError(f"merge: expected float tokens [B, N, ...], got {list(x.shape)} {x.dtype}")
    _check_slots("merge", x, assignment, x.shape[1])
    if sizes is None:
        sizes = torch.ones(x.shape[:2], device=x.device)
    if sizes.shape != x.shape[:2] or not sizes.is_floating_point():
        raise ValueError(f"merge: expected float sizes {list(x.shape[:2])}, got {list(sizes.shape)} {sizes.dtype}")
    return Merged(*_op(x, assignment.slot, sizes, assignment.count, backend or ""))


def unmerge(y: Tensor, assignment: Assignment, fill: float = 0.0, *, backend: str | None = None) -> Tensor:
    """Values of slots y [B, S, ...], any dtype, for every token: [B, N, ...], `fill` for those in slot -1.

    Gradients reach y. backend: as in `compact`, whose back ends run this.

    Raises: ValueError if shapes disagree, the back end cannot run, or (on the CPU) a slot is outside -1..count-1.
    """
    if y.ndim < 2 or y.shape[1] != assignment.count:
        raise ValueError(f"unmerge: expected slots [B, {assignment.count}, ...], got {list(y.shape)}")
    _check_slots("unmerge", y, assignment, assignment.slot.shape[-1])
    taken = rows_at(y, _flat(assignment.slot, assignment.count), fill=fill, backend=backend)
    return taken.reshape(*assignment.slot.shape, *y.shape[2:])


def _check_slots(owner: str, x: Tensor, assignment: Assignment, tokens: int) -> None:
    slot, count = assignment
    if slot.shape != (x.shape[0], tokens) or slot.dtype != torch.int64 or count < 0:
        raise ValueError(
            f"{owner}: expected slots int64 {[x.shape[0], tokens]} and count >= 0, got {list(slot.shape)} "
            f"{slot.dtype} and {count}"
        )


def _flat(slot: Tensor, count: int) -> Tensor:
    """b * count + slot [B * N]; -1 stays -1."""
    item = torch.arange(len(slot), device=slot.device)[:, None] * count
    return torch.where(slot < 0, -1, slot + item).flatten()


def _body(x: Tensor, slot: Tensor, sizes: Tensor, count: int, backend: str) -> tuple[Tensor, Tensor]:
    if slot.device.type == "cpu":
        check_ids("merge", slot, count)
    values, totals = run("merge", BACKENDS, backend, (x.flatten(2) if x.ndim > 2 else x[..., None], slot, sizes), count)
    return values.reshape(x.shape[0], count, *x.shape[2:]), totals


def _fake(x: Tensor, slot: Tensor, sizes: Tensor, count: int, backend: str) -> tuple[Tensor, Tensor]:
    values = x.new_empty((x.shape[0], count, *x.shape[2:]))
    return values, x.new_empty((x.shape[0], count), dtype=_computed_in(x, sizes))


def _remember(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, slot, sizes, ctx.count, ctx.backend = inputs
    values, totals = output
    ctx.save_for_backward(x, slot, sizes, values, totals)


def _backward(ctx: Any, of_values: Tensor, of_totals: Tensor) -> tuple[Any, ...]:
    x, slot, sizes, values, totals = ctx.saved_tensors
    flat, count = _flat(slot, ctx.count), len(slot)

    def spread(value: Tensor) -> Tensor:
        return rows_at(value, flat, backend=ctx.backend or None).reshape(count, -1, *value.shape[2:])

    total = spread(totals)
    portion = torch.where(total == 0, 0, sizes.to(total.dtype) / total.where(total != 0, 1))
    gradient = spread(of_values)
    trailing = (1,) * (x.ndim - 2)
    of_x = gradient * portion.reshape(*portion.shape, *trailing)
    of_sizes = None
    if ctx.needs_input_grad[2]:
        moved = (x.to(total.dtype) - spread(values)) * gradient
        of_sizes = moved.flatten(1).reshape(*slot.shape, -1).sum(2) / total.where(total != 0, torch.inf)
        of_sizes = (of_sizes + spread(of_totals)).where(slot >= 0, 0).to(sizes.dtype)
    return of_x.to(x.dtype), None, of_sizes, None, None


_op = define_op("vistok::merge", _body, _fake, _backward, _remember)


def _computed_in(x: Tensor, sizes: Tensor) -> torch.dtype:
    return torch.float64 if torch.float64 in (x.dtype, sizes.dtype) else torch.float32


def _reference(x: Tensor, slot: Tensor, sizes: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """x [B, N, W], slot and sizes [B, N] -> means [B, count, W], sums of sizes [B, count], as all back ends below."""
    kind = _computed_in(x, sizes)
    flat, slots = _flat(slot, count), len(x) * count
    weights = sizes.to(kind).flatten()
    totals = add_rows(weights, flat, slots)
    members = add_rows(torch.ones_like(weights), flat, slots)
    alone = torch.cat([members == 1, members.new_zeros(1, dtype=torch.bool)])[flat]
    summed = add_rows(x.to(kind).flatten(0, 1) * weights.where(~alone, 1)[:, None], flat, slots)
    means = summed / totals.where((totals != 0) & (members != 1), 1)[:, None]
    means = means.where((totals != 0)[:, None], 0).to(x.dtype)
    return means.reshape(len(x), count, x.shape[2]), totals.reshape(len(x), count)


def _cpu(x: Tensor, slot: Tensor, sizes: Tensor, count: int) -> tuple[Tensor, Tensor]:
    mean = library.function("merge")
    x = x if x.shape[2] == 1 or x.stride(2) == 1 else x.contiguous()
    slot, sizes = slot.contiguous(), sizes.float().contiguous()
    out, totals = x.new_empty(len(x), count, x.shape[2]), torch.empty(len(x), count)
    pointers = (tensor.data_ptr() for tensor in (x, slot, sizes, out, totals))
    options = (_ELEMENTS[x.dtype], *x.shape, count, *x.stride()[:2], torch.get_num_threads())
    if mean(*pointers, *options):
        raise MemoryError(f"merge: no memory to sort {slot.numel()} tokens by slot")
    return out, totals


def _triton(x: Tensor, slot: Tensor, sizes: Tensor, count: int) -> tuple[Tensor, Tensor]:
    from vistok.triton_kernels import merge as kernel

    x = x if x.shape[2] == 1 or x.stride(2) == 1 else x.contiguous()
    means, totals = kernel.weighted_mean(x, slot, sizes.float(), count)
    return means, totals


BACKENDS = {
    "reference": Backend(_reference),
    "cpu": Backend(_cpu, "cpu", SINGLE, library="merge"),
    "triton": Backend(_triton, "cuda", SINGLE),
}
