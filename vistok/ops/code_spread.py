"""What keeps the codes of a trained codebook apart: an even use of them, and different directions.

diversity = H(mean_n softmax_k(t s_nk)) with s = -|x - c|, or x.c of unit vectors ("cosine"): in nats, to be made large;
orthogonality = mean_ij cos(c_i, c_j)^2 - 1/K: 0 if all codes are orthogonal, to be made small (arXiv:2112.00384,
equation 2). Both as in vector-quantize-pytorch, which takes the mean of the first over the batch at each position;
here over all vectors. N vectors, K codes, D width. No tensor is N x K or K x K.
"""

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from vistok.ops.process_mean import process_mean
from vistok.ops.softmax_tiles import check_vectors, row_tiles

_SMALLEST = 1e-30


def code_diversity(x: Tensor, codebook: Tensor, temperature: float, *, cosine: bool = False) -> Tensor:
    """Entropy [] of the mean use of codes [K, D] by x [N, D], over all processes; 0 if there are no vectors.

    temperature: t, which multiplies the scores. Raises: ValueError if shapes or dtypes disagree or K is 0.
    """
    check_vectors("code_diversity", "x", x, codebook)
    mean = x.new_zeros(len(codebook))
    for rows in row_tiles(len(x)):
        # Only the sums are kept for backward, which makes each tile's softmax again.
        mean = mean + checkpoint(_use, x[rows], codebook, temperature, cosine, use_reentrant=False)
    mean = process_mean(mean / max(len(x), 1), len(x))
    return -(mean * mean.clamp(min=_SMALLEST).log()).sum()


def _use(x: Tensor, codebook: Tensor, temperature: float, cosine: bool) -> Tensor:
    scores = x @ codebook.T if cosine else -torch.cdist(x, codebook)
    return (temperature * scores).softmax(1).sum(0)


def orthogonality(codebook: Tensor) -> Tensor:
    """Mean squared cosine [] between codes [K, D], less the 1/K of each with itself."""
    units = torch.nn.functional.normalize(codebook, dim=1)
    # |U U^T| and |U^T U| have one Frobenius norm, and the second is D x D.
    return (units.T @ units).square().sum() / len(codebook) ** 2 - 1 / len(codebook)
