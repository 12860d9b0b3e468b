"""How sure vectors are of their code, and how evenly codes are used: entropies of a softmax over codes, streamed.

P = softmax_k(x.c_k / T);  H_s = mean_n -sum_k P log P;  A = mean_n P;  H_b = -sum_k A log(A + eps), in nats. With
gradients s of H_s and w_k of A_k, and H_n the entropy of vector n:
dlogit_nk = P_nk (-s (log P_nk + H_n) + w_k - sum_j P_nj w_j) / N.  N vectors, K codes, D width.
H_s is the mean over the vectors of this process, A over those of all: the entropy of a mean is not the mean of
entropies, and 2^18 codes need more vectors than one process has. (IBQ's and Open-MAGVIT2's code take A from their own
process only, vector-quantize-pytorch from all.)

No tensor is N x K: the backward makes P again, tile by tile. eps is 0 in the definition; MAGVIT-v2's entropy loss
(arXiv:2310.05737), as IBQ and LlamaGen code it, adds 1e-5, which matters once 1/K is as small.
Squared distances -|x - c|^2 / T are dot products too: [x, 1] . [c, -|c|^2 / 2] at T / 2, up to what softmax ignores.
"""

from typing import Any

import torch
from torch import Tensor

from vistok.ops.process_mean import process_mean
from vistok.ops.registration import define_op
from vistok.ops.softmax_tiles import OnlineSoftmax, check_vectors, code_tiles, row_tiles

_SMALLEST = 1e-30


def code_entropy(x: Tensor, codebook: Tensor, temperature: float = 1.0, *, eps: float = 0.0) -> tuple[Tensor, Tensor]:
    """H_s [] and H_b [] of x [N, D] and codebook [K, D], both float32 or both float64; both 0 if N is 0.

    Where torch.distributed runs, all processes must call it.

    Raises: ValueError if shapes or dtypes disagree, K is 0, temperature is not positive or eps is negative;
    RuntimeError for a gradient of a gradient.
    """
    check_vectors("code_entropy", "x", x, codebook)
    if temperature <= 0 or eps < 0:
        raise ValueError(f"code_entropy: expected temperature > 0 and eps >= 0, got {temperature} and {eps}")
    sample, mean, *_ = _op(x, codebook, temperature)
    mean = process_mean(mean, len(x))
    return sample, -(mean * (mean + eps).clamp(min=_SMALLEST).log()).sum()


def _logits(x: Tensor, codebook: Tensor, temperature: float) -> Tensor:
    return (x @ codebook.T).div_(temperature)


def _body(x: Tensor, codebook: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    peak, log_total, entropy = (x.new_empty(len(x), 1) for _ in range(3))
    mean = x.new_zeros(len(codebook))
    for rows in row_tiles(len(x)):
        peak[rows], log_total[rows], entropy[rows] = _row_entropy(x[rows], codebook, temperature)
        for codes in code_tiles(len(codebook)):
            logits = _logits(x[rows], codebook[codes], temperature)
            mean[codes] += logits.sub_(peak[rows]).sub_(log_total[rows]).exp_().sum(0)
    mean /= max(len(x), 1)
    return entropy.sum() / max(len(x), 1), mean, peak, log_total, entropy


def _row_entropy(x: Tensor, codebook: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """Peak, log of the sum and entropy of the softmax of every row: [n, 1] each."""
    softmax = OnlineSoftmax(x)
    below = torch.zeros_like(softmax.total)  # sum of exp(logit - peak) (logit - peak): large logits cancel in it
    for codes in code_tiles(len(codebook)):
        logits, before = _logits(x, codebook[codes], temperature), softmax.total
        weights, old, new = softmax.add(logits)
        shift = (old - new).nan_to_num(neginf=0.0)
        below = (below + before * shift) * (old - new).exp() + (weights * (logits - new)).sum(1, keepdim=True)
    log_total = softmax.total.log()
    return softmax.peak, log_total, log_total - below / softmax.total


def _fake(x: Tensor, codebook: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    columns = [x.new_empty(len(x), 1) for _ in range(3)]
    return x.new_empty(()), x.new_empty(len(codebook)), columns[0], columns[1], columns[2]


def _remember(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, codebook, ctx.temperature = inputs
    ctx.mark_non_differentiable(*output[2:])
    ctx.set_materialize_grads(True)
    ctx.save_for_backward(x, codebook, *output[2:])


def _backward(ctx: Any, of_sample: Tensor, of_mean: Tensor, *_: Any) -> tuple[Any, ...]:
    saved = (tensor.detach() for tensor in ctx.saved_tensors)
    of_x, of_codes = _backward_op(of_sample, of_mean, *saved, ctx.temperature)
    return of_x, of_codes, None


def _backward_body(
    of_sample: Tensor,
    of_mean: Tensor,
    x: Tensor,
    codebook: Tensor,
    peak: Tensor,
    log_total: Tensor,
    entropy: Tensor,
    temperature: float,
) -> tuple[Tensor, Tensor]:
    of_x, of_codes = torch.zeros_like(x), torch.zeros_like(codebook)
    for rows in row_tiles(len(x)):
        expected = _expected(x[rows], codebook, peak[rows], log_total[rows], of_mean, temperature)
        for codes in code_tiles(len(codebook)):
            log_p = _logits(x[rows], codebook[codes], temperature).sub_(peak[rows]).sub_(log_total[rows])
            of_logits = log_p.exp() * (of_mean[codes] - expected - of_sample * log_p.add_(entropy[rows]))
            of_logits /= temperature * len(x)
            of_x[rows].addmm_(of_logits, codebook[codes])
            of_codes[codes].addmm_(of_logits.T, x[rows])
    return of_x, of_codes


def _expected(
    x: Tensor, codebook: Tensor, peak: Tensor, log_total: Tensor, of_mean: Tensor, temperature: float
) -> Tensor:
    """sum_k P_nk w_k of every row, w the gradient of the mean: [n, 1]."""
    total = torch.zeros_like(peak)
    for codes in code_tiles(len(codebook)):
        p = _logits(x, codebook[codes], temperature).sub_(peak).sub_(log_total).exp_()
        total += p @ of_mean[codes, None]
    return total


def _backward_fake(
    of_sample: Tensor,
    of_mean: Tensor,
    x: Tensor,
    codebook: Tensor,
    peak: Tensor,
    log_total: Tensor,
    entropy: Tensor,
    temperature: float,
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(codebook)


_op = define_op("vistok::code_entropy", _body, _fake, _backward, _remember)
_backward_op = define_op("vistok::code_entropy_backward", _backward_body, _backward_fake)
