"""Ragged batches without padding: gather the valid vectors of a padded tensor, put results back.

A method that works on the gathered rows cannot see what lies in the padding, not even NaN. T valid vectors, D width.
"""

import torch
from torch import Tensor


def valid_rows(owner: str, x: Tensor, dim: int, mask: Tensor | None = None) -> Tensor:
    """x [..., D] float, mask [...] bool (True = valid) or None -> [T, D] in the order they lie in x.

    Raises: ValueError, beginning with `owner`, if x is not floating point, its width is not `dim` or mask does not fit.
    """
    if not x.is_floating_point() or x.ndim < 1 or x.shape[-1] != dim:
        raise ValueError(f"{owner}: expected float vectors [..., {dim}], got {list(x.shape)} {x.dtype}")
    if mask is None:
        return x.reshape(-1, dim)
    if mask.dtype != torch.bool or mask.shape != x.shape[:-1]:
        raise ValueError(
            f"{owner}: expected a bool mask {list(x.shape[:-1])}, True = valid, got {list(mask.shape)} {mask.dtype}"
        )
    return x[mask]


def padded(rows: Tensor, shape: tuple[int, ...], mask: Tensor | None = None, fill: float = 0) -> Tensor:
    """rows [T, ...] of `valid_rows` -> [*shape, ...] with `fill` where mask [*shape] is False."""
    if mask is None:
        return rows.reshape((*shape, *rows.shape[1:]))
    out = rows.new_full((*shape, *rows.shape[1:]), fill)
    out[mask] = rows
    return out
