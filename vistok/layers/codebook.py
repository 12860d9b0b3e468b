"""A codebook that learns by gradient (VQ-VAE, arXiv:1711.00937, eq. 3), with vectors of length 1 if asked for.

k = argmin_k |z - e_k|^2;  loss = beta mean (sg e_k - z)^2 + mean (e_k - sg z)^2. B items, N tokens, K codes, D width.
"""

from torch import Tensor, nn

from vistok.ops.nearest_code import nearest_code
from vistok.ops.straight_through import straight_through
from vistok.protocols import Quantized


class Codebook(nn.Module):
    """`embedding.weight` [K, D]; normalise: vectors and codes are compared and given out at length 1."""

    def __init__(self, codes: int, dim: int, *, commitment: float = 0.25, normalise: bool = True) -> None:
        super().__init__()
        self.commitment, self.normalise = commitment, normalise
        self.embedding = nn.Embedding(codes, dim)
        nn.init.uniform_(self.embedding.weight, -1 / codes, 1 / codes)

    def forward(self, z: Tensor, mask: Tensor | None = None) -> Quantized:
        """z [B, N, D] -> Quantized in float32; the loss is over the vectors that `mask` [B, N] marks, None = all."""
        rows, codes = self._unit(z.float()), self._unit(self.embedding.weight.float())
        ids = nearest_code(rows, codes)
        chosen = codes[ids]
        counted = slice(None) if mask is None else mask
        commitment = (rows - chosen.detach())[counted].square().mean()
        codebook = (chosen - rows.detach())[counted].square().mean()
        stats = {"commitment_loss": commitment.detach(), "codebook_loss": codebook.detach()}
        return Quantized(straight_through(rows, chosen), ids, self.commitment * commitment + codebook, stats)

    def lookup(self, ids: Tensor) -> Tensor:
        """ids [B, N] int64 -> codes [B, N, D] float32; ids of padding (negative ones) give some code."""
        return self._unit(self.embedding.weight.float())[ids.clamp(min=0)]

    def _unit(self, vectors: Tensor) -> Tensor:
        return nn.functional.normalize(vectors, dim=-1) if self.normalise else vectors
