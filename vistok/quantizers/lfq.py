"""Lookup-free quantization (arXiv:2310.05737): the op `vistok.ops.lfq` with the losses of its paper. K = 2^D codes.

commitment = mean (z - sg code)^2;  entropy = g_s H_s - g_b H_b of p(code | z) = softmax(2 z.c / T): H_s the mean
entropy of a vector's own distribution, H_b the entropy of their mean, over all processes. H_s factorises into bits
(exact), H_b is summed over groups of bits (an upper bound beyond `entropy_group` bits). Open-MAGVIT2 numbers its codes
with bit_order "lsb".
"""

import torch
from torch import Tensor, nn

from vistok.ops.bits import mean_code_entropy, sample_code_entropy
from vistok.ops.code_usage import batch_usage
from vistok.ops.lfq import check_bits, lfq, lfq_unpack
from vistok.ops.valid_rows import padded, valid_rows
from vistok.protocols import Quantized
from vistok.registry import register


@register
class LFQ(nn.Module):
    """2^dim sign codes of width dim, without a table. Entropy terms are computed in training only."""

    cannot: frozenset[str] = frozenset()

    def __init__(
        self,
        dim: int = 18,
        *,
        bit_order: str = "msb",
        commitment_weight: float = 0.25,
        entropy_weight: float = 0.1,
        sample_entropy_weight: float = 1.0,
        batch_entropy_weight: float = 1.0,
        temperature: float = 0.01,
        entropy_group: int = 9,
    ) -> None:
        """bit_order: "msb" = channel 0 is the highest bit, "lsb" = the lowest. temperature: T of the entropy terms.

        entropy_group: bits whose joint distribution H_b looks at; memory 2^entropy_group.
        Raises: ValueError for a dim outside 1..62, an unknown bit order, a temperature or group that is not positive.
        """
        super().__init__()
        check_bits(self._owner, dim, bit_order)
        if temperature <= 0 or entropy_group < 1:
            raise ValueError(
                f"{self._owner}: expected temperature > 0 and entropy_group >= 1, got {temperature} and {entropy_group}"
            )
        self.dim = dim
        self.codebook_sizes: tuple[int, ...] = (2**dim,)
        self.bit_order = bit_order
        self.commitment_weight = commitment_weight
        self.entropy_weight = entropy_weight
        self.sample_entropy_weight = sample_entropy_weight
        self.batch_entropy_weight = batch_entropy_weight
        self.temperature = temperature
        self.entropy_group = entropy_group

    def forward(self, z: Tensor, mask: Tensor | None = None) -> Quantized:
        """z [..., D], mask [...] bool -> Quantized; embeds are -magnitude or magnitude, gradients straight through."""
        with torch.autocast(z.device.type, enabled=False):
            rows = valid_rows(self._owner, z, self.dim, mask).float()
            codes, ids = self._quantize(rows)
            vectors = self._vectors(rows)
            commitment = (vectors - codes.detach()).square().sum() / max(rows.numel(), 1)
            loss = self.commitment_weight * commitment
            stats = {"commitment_loss": commitment.detach(), **batch_usage(ids, self.codebook_sizes[0])}
            if self.training:
                logits = 4 * self.magnitude / self.temperature * vectors
                sample, batch = sample_code_entropy(logits), mean_code_entropy(logits, self.entropy_group)
                entropy = self.sample_entropy_weight * sample - self.batch_entropy_weight * batch
                loss = loss + self.entropy_weight * entropy
                stats |= {"sample_entropy": sample.detach(), "batch_entropy": batch.detach()}
        lead = z.shape[:-1]
        return Quantized(padded(codes.to(z.dtype), lead, mask), padded(ids, lead, mask, fill=-1), loss, stats)

    def lookup(self, indices: Tensor) -> Tensor:
        """ids [...] int64 -> codes [..., D] float32, zero where the id is -1. Raises: ValueError for other ids."""
        return lfq_unpack(indices, self.dim, bit_order=self.bit_order)

    @property
    def magnitude(self) -> float:
        """Absolute value of every channel of a code."""
        return 1.0

    def _vectors(self, rows: Tensor) -> Tensor:
        """What is compared with the codes: [T, D] -> [T, D]."""
        return rows

    def _quantize(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        return lfq(rows, bit_order=self.bit_order)

    @property
    def _owner(self) -> str:
        return type(self).__name__.lower()
