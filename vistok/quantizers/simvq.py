"""SimVQ (arXiv:2411.02038): a frozen random table seen through one trained linear map, so that all codes move at once.

e_k = W c_k with c_k ~ N(0, 1/D) frozen;  k = argmin_k |z - e_k|^2;
loss = mean (sg z - e_k)^2 + commitment_weight mean (z - sg e_k)^2.

vector-quantize-pytorch holds the table and the map. Differs from its own forward: search is `nearest_code` (its
distances are N x K), padding is gathered away first, eval is straight-through also where training rotates, and the
codes fold into a plain table (`codebook`), all that is needed once trained.
"""

import torch
from torch import Tensor, nn
from vector_quantize_pytorch import SimVQ as Library

from vistok.ops.check_ids import check_ids
from vistok.ops.code_usage import batch_usage
from vistok.ops.nearest_code import nearest_code
from vistok.ops.straight_through import GRADIENTS, straight_through
from vistok.ops.valid_rows import padded, valid_rows
from vistok.protocols import Quantized
from vistok.registry import register


@register
class SimVQ(nn.Module):
    """codebook_size codes of width dim with dim * dim trained numbers."""

    cannot: frozenset[str] = frozenset()

    def __init__(
        self,
        dim: int = 32,
        codebook_size: int = 65536,
        *,
        gradient: str = "straight_through",
        commitment_weight: float = 0.25,
    ) -> None:
        """gradient: "straight_through" or "rotation". Raises: ValueError for another, or a size below 1."""
        super().__init__()
        if gradient not in GRADIENTS or dim < 1 or codebook_size < 1:
            raise ValueError(
                f"simvq: expected gradient in {tuple(GRADIENTS)}, dim and codebook_size >= 1, got {gradient!r}, {dim} "
                f"and {codebook_size}"
            )
        self.dim = dim
        self.codebook_sizes: tuple[int, ...] = (codebook_size,)
        self.gradient = gradient
        self.commitment_weight = commitment_weight
        self.library = Library(dim=dim, codebook_size=codebook_size)

    @property
    def codebook(self) -> Tensor:
        """The folded codes [K, D] float32; gradients reach the linear map."""
        with torch.autocast(self.library.frozen_codebook.device.type, enabled=False):
            codes: Tensor = self.library.code_transform(self.library.frozen_codebook)
        return codes.float()

    def forward(self, z: Tensor, mask: Tensor | None = None) -> Quantized:
        """z [..., D], mask [...] bool -> Quantized; the gradient setting acts in training, eval is straight-through."""
        with torch.autocast(z.device.type, enabled=False):
            rows, codebook = valid_rows("simvq", z, self.dim, mask).float(), self.codebook
            ids = nearest_code(rows, codebook)
            codes, count = codebook[ids], max(rows.numel(), 1)
            of_codes = (codes - rows.detach()).square().sum() / count
            commitment = (rows - codes.detach()).square().sum() / count
            pass_gradient = GRADIENTS[self.gradient] if self.training else straight_through
            embeds = pass_gradient(rows, codes.detach()).to(z.dtype)
        stats = {"commitment_loss": commitment.detach(), **batch_usage(ids, self.codebook_sizes[0])}
        lead = z.shape[:-1]
        loss = of_codes + self.commitment_weight * commitment
        return Quantized(padded(embeds, lead, mask), padded(ids, lead, mask, fill=-1), loss, stats)

    def lookup(self, indices: Tensor) -> Tensor:
        """ids [...] int64 -> codes [..., D] float32, zero where the id is -1. Raises: ValueError for other ids."""
        check_ids("simvq", indices, self.codebook_sizes[0])
        return self.codebook[indices.clamp(min=0)].where(indices.unsqueeze(-1) >= 0, 0.0)
