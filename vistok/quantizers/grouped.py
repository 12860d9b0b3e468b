"""Grouped quantization: channels are cut into groups, each with a quantizer of its own (HiFi-Codec, arXiv:2305.02765).

z = [z_1, ..., z_G];  embeds = [q_1(z_1), ..., q_G(z_G)];  loss = sum of the groups' losses.
Ids [..., G Q]: all Q ids of group 1, then those of group 2 ... (vector-quantize-pytorch stacks groups in front of the
batch axis instead).
"""

from typing import Any

import torch
from torch import Tensor, nn

from vistok.ops.valid_rows import padded, valid_rows
from vistok.protocols import Quantized
from vistok.quantizers.residual import merged_stats
from vistok.registry import create, register


@register
class Grouped(nn.Module):
    """`groups` quantizers of one kind side by side; their widths add up to `dim`."""

    cannot: frozenset[str] = frozenset()

    def __init__(self, groups: int = 2, *, quantizer: dict[str, Any] | None = None) -> None:
        """quantizer: {"method" or preset name, settings} of one group, for example a residual one.

        Raises: ValueError unless groups >= 1 and the quantizer has a method.
        """
        super().__init__()
        settings = dict(quantizer if quantizer is not None else {"method": "residual"})
        if groups < 1 or "method" not in settings:
            raise ValueError(
                f"grouped: expected groups >= 1 and quantizer={{'method': name, ...}}, got {groups} and {quantizer}"
            )
        name = settings.pop("method")
        self.quantizers = nn.ModuleList(create("quantizer", name, **settings) for _ in range(groups))
        first: Any = self.quantizers[0]
        self.cannot = first.cannot
        self.width: int = first.dim
        self.dim = groups * self.width
        self.books = len(first.codebook_sizes)
        self.codebook_sizes: tuple[int, ...] = first.codebook_sizes * groups

    def forward(self, z: Tensor, mask: Tensor | None = None) -> Quantized:
        """z [..., D], mask [...] bool -> Quantized with ids [..., G Q]; usage and perplexity are the groups' means."""
        rows = valid_rows("grouped", z, self.dim, mask)
        parts = [quantizer(part) for quantizer, part in self._paired(rows, self.width)]
        embeds = torch.cat([part.embeds for part in parts], dim=-1)
        ids = torch.cat([part.indices.reshape(-1, self.books) for part in parts], dim=-1)
        loss = torch.stack([part.loss for part in parts]).sum()
        lead = z.shape[:-1]
        ids = ids if len(self.codebook_sizes) > 1 else ids.squeeze(-1)
        return Quantized(padded(embeds, lead, mask), padded(ids, lead, mask, fill=-1), loss, merged_stats(parts))

    def lookup(self, indices: Tensor) -> Tensor:
        """ids [..., G Q] int64 -> embeds [..., D] float32; a group whose ids are -1 gives zeros.

        Raises: ValueError if there are not G Q ids to a vector, or ids out of range.
        """
        count = len(self.codebook_sizes)
        ids = indices if count > 1 else indices.unsqueeze(-1)
        if not ids.ndim or ids.shape[-1] != count:
            raise ValueError(f"grouped: expected ids [..., {count}], got {list(indices.shape)}")
        pairs = self._paired(ids, self.books)
        return torch.cat([q.lookup(part if self.books > 1 else part.squeeze(-1)) for q, part in pairs], dim=-1)

    def _paired(self, values: Tensor, width: int) -> list[tuple[Any, Tensor]]:
        """Each group's quantizer with its slice of the last axis."""
        return list(zip(self.quantizers, values.split(width, dim=-1), strict=True))
