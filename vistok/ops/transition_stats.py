"""How a module changes its tokens: squared norms and dot products of inputs and outputs. N tokens, D width.

|a_i|^2, |b_i|^2 and a_i.b_i for every token i, in one read of both. Ratio of norms and cosine follow from them:
`vistok.ops.transition_score`.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from vistok.ops.cpu import library
from vistok.ops.dispatch import SINGLE, Backend, run
from vistok.ops.registration import define_op

_CELLS = 1 << 22
# As in numbers.h.
_ELEMENTS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}


class TransitionStats(NamedTuple):
    """a_squared, b_squared and dot [...] in float32, or float64 for float64 inputs."""

    a_squared: Tensor
    b_squared: Tensor
    dot: Tensor


def transition_stats(
    a: Tensor, b: Tensor, *, add_to: TransitionStats | None = None, backend: str | None = None
) -> TransitionStats:
    """|a|^2, |b|^2 and a.b along the last axis of a, b [..., D]; gradients reach both.

    add_to: stats of other layers; the sums are those of all layers' vectors side by side.
    backend: "reference", "cpu" or "triton" instead of the one that `vistok.ops.explain` names.

    Raises: ValueError if shapes disagree, dtypes are not floating, or the back end cannot run.
    """
    if a.ndim < 1 or a.shape != b.shape:
        raise ValueError(
            f"transition_stats: expected a and b of one shape [..., D], got {list(a.shape)} and {list(b.shape)}"
        )
    if not (a.is_floating_point() and b.is_floating_point()):
        raise ValueError(f"transition_stats: expected floating-point a and b, got {a.dtype} and {b.dtype}")
    stats = TransitionStats(*_op(a, b, backend or "").unbind())
    return stats if add_to is None else TransitionStats(*(x + y for x, y in zip(add_to, stats, strict=True)))


def _body(a: Tensor, b: Tensor, backend: str) -> Tensor:
    """a, b [..., D] -> the three stats [3, ...]."""
    count, width = a.shape[:-1].numel(), a.shape[-1]
    rows = (a.reshape(count, width), b.reshape(count, width))
    found: Tensor = run("transition_stats", BACKENDS, backend, rows)
    return found.reshape(3, *a.shape[:-1])


def _fake(a: Tensor, b: Tensor, backend: str) -> Tensor:
    return a.new_empty((3, *a.shape[:-1]), dtype=_computed_in(a, b))


def _remember(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(inputs[0], inputs[1])


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
    a, b = ctx.saved_tensors
    of_a, of_b, of_dot = gradient[..., None].unbind()
    return (2 * of_a * a + of_dot * b).to(a.dtype), (2 * of_b * b + of_dot * a).to(b.dtype), None


_op = define_op("vistok::transition_stats", _body, _fake, _backward, _remember)


def _computed_in(a: Tensor, b: Tensor) -> torch.dtype:
    return torch.float64 if torch.float64 in (a.dtype, b.dtype) else torch.float32


def _reference(a: Tensor, b: Tensor) -> Tensor:
    """a, b [N, D] -> [3, N], as all back ends below."""
    out = a.new_empty(3, len(a), dtype=_computed_in(a, b))
    rows = max(1, _CELLS // max(1, a.shape[1]))
    for start in range(0, len(a), rows):
        x, y = a[start : start + rows].to(out.dtype), b[start : start + rows].to(out.dtype)
        out[:, start : start + rows] = torch.stack([(x * x).sum(1), (y * y).sum(1), (x * y).sum(1)])
    return out


def _cpu(a: Tensor, b: Tensor) -> Tensor:
    stats = library.function("transition_stats")
    kind = torch.promote_types(a.dtype, b.dtype)
    a, b = (rows if rows.stride(1) == 1 else rows.contiguous() for rows in (a.to(kind), b.to(kind)))
    count, width = a.shape
    out = torch.empty(3, count)
    pointers = (a.data_ptr(), b.data_ptr(), out.data_ptr())
    stats(*pointers, _ELEMENTS[kind], count, width, a.stride(0), b.stride(0), torch.get_num_threads())
    return out


def _triton(a: Tensor, b: Tensor) -> Tensor:
    from vistok.triton_kernels import transition_stats as kernel

    return torch.stack(kernel.stats(a, b))


BACKENDS = {
    "reference": Backend(_reference),
    "cpu": Backend(_cpu, "cpu", SINGLE, library="transition_stats"),
    "triton": Backend(_triton, "cuda", SINGLE),
}
