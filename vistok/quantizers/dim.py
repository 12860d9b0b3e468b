"""Continuous latents cut dimension by dimension, after training (TokenBridge, arXiv:2503.16430, section 3.2).

x = z clamped to [-r, r] and scaled to [-3, 3]; 2^b bins that a unit Gaussian fills equally, from -3 to 3; the code of a
bin is the Gaussian's mean within it, id = nearest code, embeds = code scaled back. No parameters, no losses: it bridges
any tokenizer whose latents have zero mean and unit variance to ids and back.
"""

import torch
from torch import Tensor, nn

from vistok.ops.check_ids import check_ids
from vistok.ops.code_usage import batch_usage
from vistok.ops.straight_through import straight_through
from vistok.ops.valid_rows import padded, valid_rows
from vistok.protocols import Quantized
from vistok.registry import register

_REACH = 3.0  # standard deviations that the bins cover
_MOST_BITS = 16


@register
class DimQuantizer(nn.Module):
    """One codebook of 2^bits numbers, the same for every dimension; ids [..., D]."""

    cannot: frozenset[str] = frozenset()
    codes: Tensor
    borders: Tensor

    def __init__(self, dim: int = 16, *, bits: int = 6, reach: float = 5.0) -> None:
        """reach: r, the largest latent that is told from larger ones.

        Raises: ValueError for dim < 1, bits outside 1..16 or reach <= 0.
        """
        super().__init__()
        if dim < 1 or not 1 <= bits <= _MOST_BITS or not reach > 0:
            raise ValueError(
                f"dim: expected dim >= 1, bits in 1..{_MOST_BITS} and reach > 0, got {dim}, {bits} and {reach}"
            )
        self.dim = dim
        self.codebook_sizes: tuple[int, ...] = (2**bits,) * dim
        codes = _means_of_equal_bins(2**bits) * (reach / _REACH)
        self.register_buffer("codes", codes.float(), persistent=False)
        # What lies at the middle of two codes goes to the lower one, as the first of equal distances does.
        self.register_buffer("borders", ((codes[1:] + codes[:-1]) / 2).float(), persistent=False)

    def forward(self, z: Tensor, mask: Tensor | None = None) -> Quantized:
        """z [..., D] normalized, mask [...] bool -> Quantized, ids [..., D]; gradients straight through."""
        with torch.autocast(z.device.type, enabled=False):
            rows = valid_rows("dim", z, self.dim, mask)
            ids = torch.bucketize(rows.detach().float().contiguous(), self.borders.float())
            embeds = straight_through(rows, self.codes.float()[ids].to(z.dtype))
        lead = z.shape[:-1]
        columns = [batch_usage(column, len(self.codes)) for column in ids.unbind(-1)]
        stats = {name: torch.stack([column[name] for column in columns]).mean() for name in columns[0]}
        out = ids if self.dim > 1 else ids.squeeze(-1)
        return Quantized(
            padded(embeds, lead, mask), padded(out, lead, mask, fill=-1), torch.zeros((), device=z.device), stats
        )

    def lookup(self, indices: Tensor) -> Tensor:
        """ids [..., D] int64 -> codes [..., D] float32, zero where the id is -1.

        Raises: ValueError if there are not D ids to a vector, or ids out of range.
        """
        ids = indices if self.dim > 1 else indices.unsqueeze(-1)
        if not ids.ndim or ids.shape[-1] != self.dim:
            raise ValueError(f"dim: expected ids [..., {self.dim}], got {list(indices.shape)}")
        check_ids("dim", ids, len(self.codes))
        return self.codes.float()[ids.clamp(min=0)].where(ids >= 0, 0.0)


def _means_of_equal_bins(bins: int) -> Tensor:
    """[bins] float64, ascending: means of a unit Gaussian within bins of equal probability, cut off at the reach."""
    edges = torch.special.ndtri(torch.linspace(0, 1, bins + 1, dtype=torch.float64)).clamp(-_REACH, _REACH)
    low, high = edges[:-1], edges[1:]
    density = torch.exp(-0.5 * edges.square()) / (2 * torch.pi) ** 0.5
    share = torch.special.ndtr(high) - torch.special.ndtr(low)
    means = (density[:-1] - density[1:]) / share.clamp(min=1e-300)
    # With many bins the outermost lie beyond the reach altogether: what is left of them is their edge.
    return torch.where(high > low, means, low).clamp(low, high)
