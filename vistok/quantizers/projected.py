"""A quantizer of few channels inside wider vectors: codes are compared in a low-dimensional space (arXiv:2110.04627).

embeds = B q(A z + a) + b, with A, a, B, b trained; ids and losses are those of q. The factorised codes of ViT-VQGAN.
"""

from typing import Any

import torch
from torch import Tensor, nn

from vistok.ops.valid_rows import padded, valid_rows
from vistok.protocols import Quantized
from vistok.registry import create, register


@register
class Projected(nn.Module):
    """Vectors of width `dim`, quantized in the width of the quantizer inside."""

    cannot: frozenset[str] = frozenset()

    def __init__(self, dim: int = 256, *, quantizer: dict[str, Any] | None = None) -> None:
        """quantizer: {"method" or preset name, settings} of what is inside, for example a vq of dim 8.

        Raises: ValueError unless dim >= 1 and the quantizer has a method.
        """
        super().__init__()
        settings = dict(quantizer if quantizer is not None else {"method": "vq"})
        if dim < 1 or "method" not in settings:
            raise ValueError(
                f"projected: expected dim >= 1 and quantizer={{'method': name, ...}}, got {dim} and {quantizer}"
            )
        self.quantizer: Any = create("quantizer", settings.pop("method"), **settings)
        self.cannot = self.quantizer.cannot
        self.dim = dim
        self.codebook_sizes: tuple[int, ...] = self.quantizer.codebook_sizes
        self.project_in = nn.Linear(dim, self.quantizer.dim)
        self.project_out = nn.Linear(self.quantizer.dim, dim)

    def forward(self, z: Tensor, mask: Tensor | None = None) -> Quantized:
        """z [..., D], mask [...] bool -> Quantized; loss and stats of the quantizer inside."""
        with torch.autocast(z.device.type, enabled=False):
            rows = valid_rows("projected", z, self.dim, mask).float()
            part: Quantized = self.quantizer(_linear(rows, self.project_in))
            embeds = _linear(part.embeds, self.project_out).to(z.dtype)
        lead = z.shape[:-1]
        return part._replace(embeds=padded(embeds, lead, mask), indices=padded(part.indices, lead, mask, fill=-1))

    def lookup(self, indices: Tensor) -> Tensor:
        """ids of the quantizer inside -> embeds [..., D] float32; zero where a vector has no id (all are -1).

        Raises: ValueError for ids that the quantizer inside refuses.
        """
        embeds = _linear(self.quantizer.lookup(indices), self.project_out)
        there = (indices >= 0).any(-1) if indices.ndim == embeds.ndim else indices >= 0
        return embeds.where(there.unsqueeze(-1), 0.0)


def _linear(rows: Tensor, layer: nn.Linear) -> Tensor:
    """The layer in float64, rounded to float32: a product's last bits would depend on how many rows it has."""
    return nn.functional.linear(rows.double(), layer.weight.double(), layer.bias.double()).float()
