"""Binary spherical quantization: `lfq` with codes of length 1, for the unit vector of z (arXiv:2406.07548). D bits.

u = z/|z|, code = sign(u)/sqrt(D). The signs of u are those of z, and are read from it: dividing by the length can only
lose the sign of a tiny channel. Gradients pass straight through to u, and through the normalisation to z.
"""

import math
from typing import Any

import torch
from torch import Tensor

from vistok.ops.check_ids import check_ids
from vistok.ops.dispatch import run
from vistok.ops.lfq import BACKENDS, UNPACK, check_bits, check_vectors
from vistok.ops.registration import define_op
from vistok.ops.straight_through import unit_vectors


def bsq(z: Tensor, *, bit_order: str = "msb", backend: str | None = None) -> tuple[Tensor, Tensor]:
    """Codes [..., D] of -1/sqrt(D) and 1/sqrt(D) and ids [...] int64 of z [..., D] float; codes have the dtype of z.

    bit_order: as in `lfq`. A zero vector has the gradient of its code.
    backend: "reference", "cpu" or "triton" instead of the one that `vistok.ops.explain` names.

    Raises: ValueError if z is not [..., D] float, for what `check_bits` refuses, or if the back end cannot run.
    """
    check_vectors("bsq", z, bit_order)
    codes, ids = _op(z, bit_order, backend or "")
    return codes, ids


def bsq_unpack(indices: Tensor, dim: int, *, bit_order: str = "msb", backend: str | None = None) -> Tensor:
    """Codes [..., dim] float32 of ids [...] int64 that `bsq` gave; zeros where the id is -1.

    Raises: ValueError for other ids, for what `check_bits` refuses, or if the back end cannot run.
    """
    check_bits("bsq_unpack", dim, bit_order)
    codes: Tensor = _unpack_op(indices, dim, bit_order, backend or "")
    return codes


def magnitude(dim: int) -> float:
    """Absolute value of every channel of a code of length 1."""
    return 1 / math.sqrt(dim)


def _body(z: Tensor, bit_order: str, backend: str) -> tuple[Tensor, Tensor]:
    dim = z.shape[-1]
    codes, ids = run("bsq", BACKENDS, backend, (z.reshape(-1, dim),), magnitude(dim), bit_order)
    return codes.reshape(z.shape), ids.reshape(z.shape[:-1])


def _fake(z: Tensor, bit_order: str, backend: str) -> tuple[Tensor, Tensor]:
    return z.new_empty(z.shape), z.new_empty(z.shape[:-1], dtype=torch.int64)


def _remember(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(inputs[0])


def _backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Any, ...]:
    (z,) = ctx.saved_tensors
    kind = torch.promote_types(z.dtype, torch.float32)
    rows, wanted = z.to(kind), gradient.to(kind)
    units, length = unit_vectors(rows), rows.norm(dim=-1, keepdim=True)
    across = wanted - units * (units * wanted).sum(-1, keepdim=True)
    return (across / length.where(length > 0, 1.0)).to(z.dtype), None, None


def _unpack_body(indices: Tensor, dim: int, bit_order: str, backend: str) -> Tensor:
    check_ids("bsq_unpack", indices, 1 << dim)
    codes: Tensor = run("bsq_unpack", UNPACK, backend, (indices.reshape(-1),), dim, magnitude(dim), bit_order)
    return codes.reshape(*indices.shape, dim)


def _fake_unpack(indices: Tensor, dim: int, bit_order: str, backend: str) -> Tensor:
    return indices.new_empty((*indices.shape, dim), dtype=torch.float32)


_op = define_op("vistok::bsq", _body, _fake, _backward, _remember)
_unpack_op = define_op("vistok::bsq_unpack", _unpack_body, _fake_unpack)
