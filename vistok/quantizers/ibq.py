"""Index backpropagation quantization (IBQ, arXiv:2412.02692): the op `vistok.ops.index_propagation` with its losses.

k = argmax_k z.c_k (no norm: not the nearest code);  embeds = (onehot - sg(p) + p) C, p = softmax(z C^T), so that every
code and z get their gradients through p;  L = mean (embeds - z)^2 + mean (sg c_k - z)^2 + beta mean (c_k - sg z)^2
+ entropy_weight (g_s H_s - g_b H_b), H_s and H_b of softmax(z C^T / T) as in `vistok.ops.code_entropy`, H_b of the
mean over all processes.

The authors' code holds several N x K tensors; here neither forward nor backward makes one (ours).
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from vistok.ops.check_ids import check_ids
from vistok.ops.code_entropy import code_entropy
from vistok.ops.code_usage import batch_usage
from vistok.ops.index_propagation import index_propagation
from vistok.ops.valid_rows import padded, valid_rows
from vistok.protocols import Quantized
from vistok.registry import register


@register
class IBQ(nn.Module):
    """A table of codes [codebook_size, dim], all trained by gradient at every step. Entropy terms in training only."""

    cannot: frozenset[str] = frozenset()

    def __init__(
        self,
        dim: int = 256,
        codebook_size: int = 16384,
        *,
        beta: float = 0.25,
        entropy_weight: float = 0.05,
        sample_entropy_weight: float = 1.0,
        batch_entropy_weight: float = 1.0,
        temperature: float = 0.01,
        entropy_eps: float = 1e-5,
    ) -> None:
        """temperature: T of the entropy terms, which entropy_weight 0 leaves out.

        entropy_eps: added inside the logarithm of H_b, as the authors do; 0 is the entropy itself.
        Raises: ValueError for a size below 1, a temperature that is not positive or a negative entropy_eps.
        """
        super().__init__()
        if dim < 1 or codebook_size < 1:
            raise ValueError(f"ibq: expected dim and codebook_size >= 1, got {dim} and {codebook_size}")
        if temperature <= 0 or entropy_eps < 0:
            raise ValueError(f"ibq: expected temperature > 0 and entropy_eps >= 0, got {temperature} and {entropy_eps}")
        self.dim = dim
        self.codebook_sizes: tuple[int, ...] = (codebook_size,)
        self.beta = beta
        self.entropy_weight = entropy_weight
        self.sample_entropy_weight = sample_entropy_weight
        self.batch_entropy_weight = batch_entropy_weight
        self.temperature = temperature
        self.entropy_eps = entropy_eps
        self.codebook = nn.Parameter(torch.randn(codebook_size, dim))

    def forward(self, z: Tensor, mask: Tensor | None = None) -> Quantized:
        """z [..., D], mask [...] bool -> Quantized; gradients of embeds reach z through the softmax, in eval too."""
        with torch.autocast(z.device.type, enabled=False):
            rows, codebook = valid_rows("ibq", z, self.dim, mask).float(), self.codebook.float()
            embeds, ids = index_propagation(rows, codebook)
            codes = codebook[ids]
            count = max(rows.numel(), 1)
            # The fused squared error keeps its inputs only, and those are there anyway.
            commitment = mse_loss(rows, codes.detach(), reduction="sum") / count
            of_codes = mse_loss(codes, rows.detach(), reduction="sum") / count
            loss = mse_loss(embeds, rows, reduction="sum") / count + commitment + self.beta * of_codes
            stats = {"commitment_loss": commitment.detach(), **batch_usage(ids, self.codebook_sizes[0])}
            if self.training and self.entropy_weight:
                sample, batch = code_entropy(rows, codebook, self.temperature, eps=self.entropy_eps)
                entropy = self.sample_entropy_weight * sample - self.batch_entropy_weight * batch
                loss = loss + self.entropy_weight * entropy
                stats |= {"sample_entropy": sample.detach(), "batch_entropy": batch.detach()}
        lead = z.shape[:-1]
        return Quantized(padded(embeds.to(z.dtype), lead, mask), padded(ids, lead, mask, fill=-1), loss, stats)

    def lookup(self, indices: Tensor) -> Tensor:
        """ids [...] int64 -> codes [..., D] float32, zero where the id is -1. Raises: ValueError for other ids."""
        check_ids("ibq", indices, self.codebook_sizes[0])
        return self.codebook.float()[indices.clamp(min=0)].where(indices.unsqueeze(-1) >= 0, 0.0)
