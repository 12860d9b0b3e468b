"""The code of largest dot product, with gradients to all codes (IBQ, arXiv:2412.02692), streamed.

p = softmax_k(z.c_k);  k = argmax_k z.c_k;  embeds = (onehot(k) - sg(p) + p) C.  With g the gradient of embeds:
dlogit_j = p_j (c_j.g - sum_i p_i c_i.g);  dz = sum_j dlogit_j c_j (nothing passes straight through);
dC_j = onehot_j g + dlogit_j z.  N vectors, K codes, D width.

The authors' code keeps p, the one-hot rows and their gradients, N x K each. Here the forward is a search, and the
backward makes p tile by tile, once for its sum and sum_i p_i c_i.g and once more for the gradients: O(N D + K D)
memory, and the same numbers up to rounding.
"""

from typing import Any

import torch
from torch import Tensor

from vistok.ops.code_statistics import code_statistics
from vistok.ops.nearest_code import nearest_code
from vistok.ops.registration import define_op
from vistok.ops.softmax_tiles import OnlineSoftmax, check_vectors, code_tiles, row_tiles


def index_propagation(z: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor]:
    """Codes [N, D] and ids [N] int64 of z [N, D] in codebook [K, D]; gradients reach z and every code.

    The id is that of the largest dot product, the lowest among equals: not the nearest code. Work and results are
    float32, or float64 where both are given so.

    Raises: ValueError if shapes or dtypes disagree or K is 0; RuntimeError for a gradient of a gradient.
    """
    check_vectors("index_propagation", "z", z, codebook)
    embeds, ids = _op(z, codebook)
    return embeds, ids


def _body(z: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor]:
    ids = nearest_code(z, codebook, "dot")
    return codebook[ids], ids


def _fake(z: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(z), z.new_empty(len(z), dtype=torch.int64)


def _remember(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(*inputs, output[1])


def _backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor, Tensor]:
    of_z, of_codes = _backward_op(gradient, *(tensor.detach() for tensor in ctx.saved_tensors))
    return of_z, of_codes


def _backward_body(g: Tensor, z: Tensor, codebook: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    of_z, of_codes = torch.zeros_like(z), code_statistics(g, ids, codebook).sums
    for rows in row_tiles(len(z)):
        softmax, expected = _softmax(g[rows], z[rows], codebook)
        log_total = softmax.total.log()
        for codes in code_tiles(len(codebook)):
            p = (z[rows] @ codebook[codes].T).sub_(softmax.peak).sub_(log_total).exp_()
            of_logits = p.mul_((g[rows] @ codebook[codes].T).sub_(expected))
            of_z[rows].addmm_(of_logits, codebook[codes])
            of_codes[codes].addmm_(of_logits.T, z[rows])
    return of_z, of_codes


def _softmax(g: Tensor, z: Tensor, codebook: Tensor) -> tuple[OnlineSoftmax, Tensor]:
    """Peak and sum of the softmax of rows z [n, D], and sum_i p_i c_i.g of rows g [n, D]: [n, 1]."""
    softmax = OnlineSoftmax(z)
    expected = torch.zeros_like(softmax.total)
    for codes in code_tiles(len(codebook)):
        weights, old, new = softmax.add(z @ codebook[codes].T)
        along = weights.mul_(g @ codebook[codes].T).sum(1, keepdim=True)
        expected = expected * (old - new).exp() + along
    return softmax, expected / softmax.total


def _backward_fake(g: Tensor, z: Tensor, codebook: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(z), torch.empty_like(codebook)


_op = define_op("vistok::index_propagation", _body, _fake, _backward, _remember)
_backward_op = define_op("vistok::index_propagation_backward", _backward_body, _backward_fake)
