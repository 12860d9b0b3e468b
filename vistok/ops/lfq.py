"""Lookup-free quantization: the sign of every channel is a code and one bit of the id (arXiv:2310.05737). D bits.

code_i = 1 if z_i > 0 else -1;  id = sum_i [z_i > 0] w_i with w_i = 2^(D-1-i) in bit order "msb" (channel 0 counts
most, as in vector-quantize-pytorch) or 2^i in "lsb" (as in Open-MAGVIT2). Zero and NaN are not above zero.
"""

from typing import Any

import torch
from torch import Tensor

from vistok.ops.check_ids import check_ids
from vistok.ops.cpu import library
from vistok.ops.dispatch import SINGLE, Backend, run
from vistok.ops.registration import define_op

BIT_ORDERS = ("msb", "lsb")
MAX_BITS = 62


def lfq(z: Tensor, *, bit_order: str = "msb", backend: str | None = None) -> tuple[Tensor, Tensor]:
    """Codes [..., D] of -1 and 1 and ids [...] int64 of z [..., D] float; codes have the dtype of z.

    Gradients pass straight through to z.
    backend: "reference", "cpu" or "triton" instead of the one that `vistok.ops.explain` names.

    Raises: ValueError if z is not [..., D] float, for what `check_bits` refuses, or if the back end cannot run.
    """
    check_vectors("lfq", z, bit_order)
    codes, ids = _op(z, bit_order, backend or "")
    return codes, ids


def lfq_unpack(indices: Tensor, dim: int, *, bit_order: str = "msb", backend: str | None = None) -> Tensor:
    """Codes [..., dim] float32 of ids [...] int64 that `lfq` gave; zeros where the id is -1.

    Raises: ValueError for other ids, for what `check_bits` refuses, or if the back end cannot run.
    """
    check_bits("lfq_unpack", dim, bit_order)
    codes: Tensor = _unpack_op(indices, dim, bit_order, backend or "")
    return codes


def check_bits(owner: str, dim: int, bit_order: str) -> None:
    """Raise ValueError, beginning with `owner`, unless dim is in 1..62 (ids are int64) and the order is known."""
    if not 1 <= dim <= MAX_BITS:
        raise ValueError(f"{owner}: expected 1..{MAX_BITS} bits so that ids fit int64, got {dim}")
    if bit_order not in BIT_ORDERS:
        raise ValueError(f"{owner}: expected bit order in {BIT_ORDERS}, got {bit_order!r}")


def check_vectors(owner: str, z: Tensor, bit_order: str) -> None:
    """Raise ValueError, beginning with `owner`, unless z is [..., D] float and its signs can be packed."""
    if not z.is_floating_point() or z.ndim < 1:
        raise ValueError(f"{owner}: expected float vectors [..., D], got {list(z.shape)} {z.dtype}")
    check_bits(owner, z.shape[-1], bit_order)


def _body(z: Tensor, bit_order: str, backend: str) -> tuple[Tensor, Tensor]:
    codes, ids = run("lfq", BACKENDS, backend, (z.reshape(-1, z.shape[-1]),), 1.0, bit_order)
    return codes.reshape(z.shape), ids.reshape(z.shape[:-1])


def _fake(z: Tensor, bit_order: str, backend: str) -> tuple[Tensor, Tensor]:
    return z.new_empty(z.shape), z.new_empty(z.shape[:-1], dtype=torch.int64)


def _remember(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.mark_non_differentiable(output[1])


def _backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Any, ...]:
    return gradient, None, None


def _unpack_body(indices: Tensor, dim: int, bit_order: str, backend: str) -> Tensor:
    check_ids("lfq_unpack", indices, 1 << dim)
    codes: Tensor = run("lfq_unpack", UNPACK, backend, (indices.reshape(-1),), dim, 1.0, bit_order)
    return codes.reshape(*indices.shape, dim)


def _fake_unpack(indices: Tensor, dim: int, bit_order: str, backend: str) -> Tensor:
    return indices.new_empty((*indices.shape, dim), dtype=torch.float32)


_op = define_op("vistok::lfq", _body, _fake, _backward, _remember)
_unpack_op = define_op("vistok::lfq_unpack", _unpack_body, _fake_unpack)


def _weights(dim: int, bit_order: str, device: torch.device) -> Tensor:
    weights = 2 ** torch.arange(dim, device=device)
    return weights.flip(0) if bit_order == "msb" else weights


def _codes_of(bits: Tensor, magnitude: float, kind: torch.dtype) -> Tensor:
    return (bits.to(kind) * 2 - 1) * magnitude


def _reference(z: Tensor, magnitude: float, bit_order: str) -> tuple[Tensor, Tensor]:
    """z [N, D] -> codes [N, D] of -magnitude and magnitude, ids [N], as all back ends below."""
    bits = z > 0
    codes = _codes_of(bits, magnitude, torch.promote_types(z.dtype, torch.float32)).to(z.dtype)
    return codes.contiguous(), (bits * _weights(z.shape[1], bit_order, z.device)).sum(-1)


def _cpu(z: Tensor, magnitude: float, bit_order: str) -> tuple[Tensor, Tensor]:
    quantize = library.function("lfq")
    rows, size = z.float().contiguous(), torch.tensor(magnitude, dtype=torch.float32)
    codes, ids = torch.empty(rows.shape), torch.empty(len(rows), dtype=torch.int64)
    pointers = (tensor.data_ptr() for tensor in (rows, size, codes, ids))
    quantize(*pointers, *rows.shape, bit_order == "msb", torch.get_num_threads())
    return codes.to(z.dtype), ids


def _triton(z: Tensor, magnitude: float, bit_order: str) -> tuple[Tensor, Tensor]:
    from vistok.triton_kernels import lfq as kernel

    found: tuple[Tensor, Tensor] = kernel.quantize(z, magnitude, bit_order == "msb")
    return found


def _unpack(indices: Tensor, dim: int, magnitude: float, bit_order: str) -> Tensor:
    """indices [N] -> codes [N, D] float32 of -magnitude and magnitude, as all back ends below."""
    bits = (indices[:, None] & _weights(dim, bit_order, indices.device)) != 0
    return _codes_of(bits, magnitude, torch.float32).where(indices[:, None] >= 0, 0.0)


def _unpack_cpu(indices: Tensor, dim: int, magnitude: float, bit_order: str) -> Tensor:
    unpack = library.function("lfq_unpack")
    ids, size = indices.contiguous(), torch.tensor(magnitude, dtype=torch.float32)
    codes = torch.empty(len(ids), dim)
    pointers = (tensor.data_ptr() for tensor in (ids, size, codes))
    unpack(*pointers, *codes.shape, bit_order == "msb", torch.get_num_threads())
    return codes


def _unpack_triton(indices: Tensor, dim: int, magnitude: float, bit_order: str) -> Tensor:
    from vistok.triton_kernels import lfq as kernel

    found: Tensor = kernel.unpack(indices, dim, magnitude, bit_order == "msb")
    return found


BACKENDS = {
    "reference": Backend(_reference),
    "cpu": Backend(_cpu, "cpu", SINGLE, library="lfq"),
    "triton": Backend(_triton, "cuda", SINGLE),
}
UNPACK = {
    "reference": Backend(_unpack),
    "cpu": Backend(_unpack_cpu, "cpu", library="lfq_unpack"),
    "triton": Backend(_unpack_triton, "cuda"),
}
