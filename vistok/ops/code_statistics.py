"""What a batch says about a codebook: rows won by each code, their sums, their distance. N rows, K codes, D width.

n_k = |S_k|, s_k = sum_{i in S_k} x_i, error = sum_k sum_{i in S_k} |x_i - c_k|^2, S_k = {i : index_i = k}. The moving
averages of a codebook (arXiv:1711.00937, appendix A.1) follow from n and s, the commitment loss from the error.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from vistok.ops.check_ids import check_ids
from vistok.ops.cpu import library
from vistok.ops.dispatch import SINGLE, Backend, run
from vistok.ops.registration import define_op

_ROWS = 1 << 16


class CodeStatistics(NamedTuple):
    """counts [K] int64; sums [K, D] and squared_error [] in float32, or float64 for float64 inputs."""

    counts: Tensor
    sums: Tensor
    squared_error: Tensor


def code_statistics(x: Tensor, indices: Tensor, codebook: Tensor, *, backend: str | None = None) -> CodeStatistics:
    """Counts, sums and squared error of x [..., D] under indices [...] int64 into codebook [K, D]; -1 is no code.

    The same bits every time on a back end, for any number of threads. Gradients of sums and squared_error reach x,
    those of squared_error also codebook. The commitment loss is squared_error / x.numel().
    backend: "reference", "cpu" or "triton" instead of the one that `vistok.ops.explain` names.

    Raises: ValueError if shapes or dtypes disagree, an index is outside -1..K-1, or the back end cannot run.
    """
    if codebook.ndim != 2 or x.ndim < 1 or x.shape[-1] != codebook.shape[1] or indices.shape != x.shape[:-1]:
        raise ValueError(
            f"code_statistics: expected x [..., D], indices [...] and codebook [K, D], got {list(x.shape)}, "
            f"{list(indices.shape)} and {list(codebook.shape)}"
        )
    if indices.dtype != torch.int64 or not x.is_floating_point():
        raise ValueError(f"code_statistics: expected float x and int64 indices, got {x.dtype} and {indices.dtype}")
    sums, error, counts = _op(x, indices, codebook, backend or "")
    return CodeStatistics(counts, sums, error)


def moving_average(
    counts: Tensor, sums: Tensor, found: CodeStatistics, decay: float = 0.99, eps: float = 1e-5
) -> tuple[Tensor, Tensor, Tensor]:
    """One step of the averages: counts [K], sums [K, D] float -> new counts, new sums and codes [K, D].

    n <- l n + (1-l) n_batch, m <- l m + (1-l) s_batch, code = m / n' with n' = (n + eps) / (sum n + K eps) sum n.
    """
    counts = torch.lerp(counts, found.counts.to(counts), 1 - decay)
    sums = torch.lerp(sums, found.sums.to(sums), 1 - decay)
    total = counts.sum()
    smoothed = (counts + eps) / (total + len(counts) * eps) * total
    return counts, sums, sums / smoothed[:, None]


def _body(x: Tensor, indices: Tensor, codebook: Tensor, backend: str) -> tuple[Tensor, Tensor, Tensor]:
    check_ids("code_statistics", indices, len(codebook))
    rows = (x.reshape(-1, x.shape[-1]), indices.reshape(-1), codebook)
    found: tuple[Tensor, Tensor, Tensor] = run("code_statistics", BACKENDS, backend, rows)
    return found


def _fake(x: Tensor, indices: Tensor, codebook: Tensor, backend: str) -> tuple[Tensor, Tensor, Tensor]:
    kind = _computed_in(x, codebook)
    counts = x.new_empty(codebook.shape[0], dtype=torch.int64)
    return x.new_empty(codebook.shape, dtype=kind), x.new_empty((), dtype=kind), counts


def _remember(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    x, indices, codebook, _ = inputs
    sums, _, counts = output
    ctx.mark_non_differentiable(counts)
    ctx.save_for_backward(x, indices, codebook, counts, sums)


def _backward(ctx: Any, sums_gradient: Tensor, error_gradient: Tensor, _: Tensor) -> tuple[Any, ...]:
    x, indices, codebook, counts, sums = ctx.saved_tensors
    codes = codebook.to(sums.dtype)
    chosen = indices.clamp(min=0)
    of_x = sums_gradient[chosen] + 2 * error_gradient * (x.to(sums.dtype) - codes[chosen])
    of_codes = 2 * error_gradient * (counts[:, None] * codes - sums)
    return of_x.where(indices[..., None] >= 0, 0).to(x.dtype), None, of_codes.to(codebook.dtype), None


_op = define_op("vistok::code_statistics", _body, _fake, _backward, _remember)


def _computed_in(x: Tensor, codebook: Tensor) -> torch.dtype:
    return torch.float64 if torch.float64 in (x.dtype, codebook.dtype) else torch.float32


def _reference(x: Tensor, indices: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """x [N, D], indices [N], codebook [K, D] -> sums, squared error, counts, as all back ends below."""
    kind = _computed_in(x, codebook)
    counts = torch.zeros(len(codebook), dtype=torch.int64, device=x.device)
    sums = torch.zeros(codebook.shape, dtype=kind, device=x.device)
    error = torch.zeros((), dtype=torch.float64, device=x.device)
    for start in range(0, len(x), _ROWS):
        counted = indices[start : start + _ROWS] >= 0
        rows = x[start : start + _ROWS].to(kind)[counted]
        ids = indices[start : start + _ROWS][counted]
        counts.index_add_(0, ids, torch.ones_like(ids))
        _add_rows(sums, ids, rows)
        error += (rows.double() - codebook[ids].double()).square().sum()
    return sums, error.to(kind), counts


def _add_rows(sums: Tensor, ids: Tensor, rows: Tensor) -> None:
    """sums[ids] += rows in a fixed order: on CUDA index_put_ has one, since it sorts, elsewhere index_add_."""
    if sums.is_cuda:
        sums.index_put_((ids,), rows, accumulate=True)
    else:
        sums.index_add_(0, ids, rows)


def _cpu(x: Tensor, indices: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    count = library.function("code_statistics")
    x, indices, codebook = x.float().contiguous(), indices.contiguous(), codebook.float().contiguous()
    counts, sums = torch.zeros(len(codebook), dtype=torch.int64), torch.zeros(codebook.shape)
    error = torch.zeros((), dtype=torch.float64)
    pointers = (tensor.data_ptr() for tensor in (x, indices, codebook, counts, sums, error))
    if count(*pointers, len(x), *codebook.shape, torch.get_num_threads()):
        raise MemoryError(f"code_statistics: no memory for the statistics of {len(codebook)} codes")
    return sums, error.float(), counts


def _triton(x: Tensor, indices: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    from vistok.triton_kernels import code_statistics as kernel

    counts, sums = kernel.code_sums(x, indices, len(codebook))
    return sums.contiguous(), kernel.squared_error(x, indices, codebook.float()), counts


BACKENDS = {
    "reference": Backend(_reference),
    "cpu": Backend(_cpu, "cpu", SINGLE, library="code_statistics"),
    "triton": Backend(_triton, "cuda", SINGLE),
}
