"""Nearest codebook entry of every vector, without the N x K matrix. N vectors, K codes, D width.

k = argmin_k |x - c_k| (l2), argmax_k x.c_k / |c_k| (cosine) or argmax_k x.c_k (dot); ties to the lowest k. For l2, x
and the codes are first moved by the mean code where it is long against their spread: float32 cannot tell codes of
spread 1e-3 around 30 apart otherwise. A code with NaN or infinity never wins; a row with one, or without a finite
score, gets 0.
"""

from typing import Literal, overload

import torch
from torch import Tensor

from vistok.ops.certified import FLOAT32, certified_code, rounding_bound
from vistok.ops.codebook_scores import ROWS, largest_score, move_rows, prepare
from vistok.ops.cpu import library
from vistok.ops.dispatch import SINGLE, Backend, run
from vistok.ops.registration import define_op

METRICS = ("l2", "cosine", "dot")
PRECISIONS = ("exact", "fast", "bf16", "certified")


@overload
def nearest_code(
    x: Tensor,
    codebook: Tensor,
    metric: str = ...,
    *,
    precision: str = ...,
    return_score: Literal[False] = ...,
    backend: str | None = ...,
) -> Tensor: ...
@overload
def nearest_code(
    x: Tensor,
    codebook: Tensor,
    metric: str = ...,
    *,
    precision: str = ...,
    return_score: Literal[True],
    backend: str | None = ...,
) -> tuple[Tensor, Tensor]: ...
def nearest_code(
    x: Tensor,
    codebook: Tensor,
    metric: str = "l2",
    *,
    precision: str = "exact",
    return_score: bool = False,
    backend: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Index of the nearest code: x [..., D], codebook [K, D] -> [...] int64; it carries no gradient.

    metric: "l2" (Euclidean), "cosine" (largest cosine similarity) or "dot" (largest dot product). precision: what the
    scores are at least computed in: "exact" float32, "fast" TF32, "bf16" bfloat16; "certified" gives the argmax of
    float64 scores, the same on every back end. float64 inputs are always searched in float64. return_score: also the
    squared distance, cosine or dot product, [...] float32 or float64; gradients reach x and codebook through it.
    backend: "reference", "cpu" or "triton" instead of the one that `vistok.ops.explain` names.

    Raises: ValueError if shapes disagree, K is 0, metric or precision is unknown, or the back end cannot run.
    """
    _check(x, codebook, metric, precision)
    index: Tensor = _op(x.detach(), codebook.detach(), metric, precision, backend or "")
    return (index, _score(x, codebook, index, metric)) if return_score else index


def _check(x: Tensor, codebook: Tensor, metric: str, precision: str) -> None:
    if codebook.ndim != 2 or not len(codebook) or x.ndim < 1 or x.shape[-1] != codebook.shape[1]:
        raise ValueError(
            f"nearest_code: expected x [..., D] and codebook [K, D], K > 0, got {list(x.shape)} and "
            f"{list(codebook.shape)}"
        )
    if metric not in METRICS:
        raise ValueError(f"nearest_code: expected metric 'l2', 'cosine' or 'dot', got {metric!r}")
    if precision not in PRECISIONS:
        raise ValueError(f"nearest_code: expected precision in {PRECISIONS}, got {precision!r}")


def _score(x: Tensor, codebook: Tensor, index: Tensor, metric: str) -> Tensor:
    kind = _computed_in(x, codebook)
    x, code = x.to(kind), codebook.to(kind)[index]
    if metric == "l2":
        return (x - code).square().sum(-1)
    return torch.nn.functional.cosine_similarity(x, code, dim=-1) if metric == "cosine" else (x * code).sum(-1)


def _computed_in(x: Tensor, codebook: Tensor) -> torch.dtype:
    return torch.float64 if torch.float64 in (x.dtype, codebook.dtype) else torch.float32


def _body(x: Tensor, codebook: Tensor, metric: str, precision: str, backend: str) -> Tensor:
    rows = x.reshape(-1, x.shape[-1])
    index: Tensor = run("nearest_code", BACKENDS, backend, (rows, codebook), metric, precision)
    return index.reshape(x.shape[:-1])


def _fake(x: Tensor, codebook: Tensor, metric: str, precision: str, backend: str) -> Tensor:
    return x.new_empty(x.shape[:-1], dtype=torch.int64)


_op = define_op("vistok::nearest_code", _body, _fake)


def _reference(x: Tensor, codebook: Tensor, metric: str, precision: str) -> Tensor:
    """x [N, D], codebook [K, D] -> [N] int64, as are all back ends below. Ignores a precision below float32."""
    if precision == "certified":
        return certified_code(x, codebook, metric)
    book = prepare(codebook.to(_computed_in(x, codebook)), metric)
    index = torch.zeros(len(x), dtype=torch.int64, device=x.device)
    for start in range(0, len(x), ROWS):
        rows, finite = move_rows(x[start : start + ROWS], book)
        index[start : start + ROWS] = largest_score(rows, book)[1].where(finite, 0)
    return index


def _cpu(x: Tensor, codebook: Tensor, metric: str, precision: str) -> Tensor:
    """The C++ search, in float32; `certified` with its own float64 pass."""
    search = library.function("nearest_code")
    x, codebook = x.float().contiguous(), codebook.float().contiguous()
    index = torch.empty(len(x), dtype=torch.int64)
    options = (METRICS.index(metric), precision == "certified", torch.get_num_threads())
    if search(x.data_ptr(), codebook.data_ptr(), index.data_ptr(), len(x), *codebook.shape, *options):
        raise MemoryError(f"nearest_code: no memory to search {len(codebook)} codes of width {codebook.shape[1]}")
    return index


def _triton(x: Tensor, codebook: Tensor, metric: str, precision: str) -> Tensor:
    """The Triton search; `certified` proves what it can from float32 scores and leaves the rest to float64."""
    from vistok.triton_kernels import nearest_code as kernel

    book = prepare(codebook.float(), metric)
    if precision != "certified":
        found: Tensor = kernel.search(x, book.codes, book.bias, book.centre, precision)
        return found
    index: Tensor
    index, best, second = kernel.search_two(x, book.codes, book.bias, book.centre)
    rows, finite = move_rows(x, book)
    lead = best.double() - second.double()
    open_rows = (finite & ~(lead > 2 * rounding_bound(rows, book, metric, FLOAT32))).nonzero()[:, 0]
    index[open_rows] = certified_code(x[open_rows], codebook, metric)
    return index


BACKENDS = {
    "reference": Backend(_reference),
    "cpu": Backend(_cpu, "cpu", SINGLE, library="nearest_code"),
    "triton": Backend(_triton, "cuda", SINGLE),
}
