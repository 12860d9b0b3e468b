"""Residual quantization: every level quantizes what the levels before it left over (arXiv:2107.03312).

r_0 = z;  r_{i+1} = r_i - sg(q_i(r_i));  embeds = sum_i q_i(r_i);  loss = sum of the levels' losses;  ids [..., Q].
Each level passes its own gradient (straight-through or rotation) to z, so the gradients of the levels add up.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, distributed, nn

from vistok.ops.valid_rows import padded, valid_rows
from vistok.protocols import Quantized
from vistok.registry import create, register

_AVERAGED = ("usage", "perplexity")


@register
class Residual(nn.Module):
    """`levels` quantizers of one kind in a row; ids of level i are indices[..., i]."""

    cannot: frozenset[str] = frozenset()

    def __init__(
        self,
        levels: int = 4,
        *,
        quantizer: dict[str, Any] | None = None,
        shared: bool = False,
        scale: float = 1.0,
        quantize_dropout: bool = False,
    ) -> None:
        """quantizer: {"method" or preset name, settings} of one level. shared: one codebook for all levels.

        scale: level i works on r_i / scale^i; below 1 for codes of fixed size (lfq 0.5, fsq 1/(L-1)).
        quantize_dropout: in training keep a random number of first levels; the others' ids are -1, their codes 0.
        Raises: ValueError unless levels >= 1, scale > 0, and a level has one codebook.
        """
        super().__init__()
        if levels < 1 or scale <= 0:
            raise ValueError(f"residual: expected levels >= 1 and scale > 0, got {levels} and {scale}")
        settings = dict(quantizer if quantizer is not None else {"method": "vq"})
        if "method" not in settings:
            raise ValueError(f"residual: expected quantizer={{'method': name, ...}}, got {quantizer}")
        name = settings.pop("method")
        self.quantizers = nn.ModuleList(create("quantizer", name, **settings) for _ in range(1 if shared else levels))
        first: Any = self.quantizers[0]
        if len(first.codebook_sizes) != 1:
            raise ValueError(f"residual: expected levels of one codebook, {name!r} has {len(first.codebook_sizes)}")
        self.cannot = first.cannot
        self.dim: int = first.dim
        self.codebook_sizes: tuple[int, ...] = first.codebook_sizes * levels
        self.levels = levels
        self.shared = shared
        self.scale = scale
        self.quantize_dropout = quantize_dropout

    def forward(self, z: Tensor, mask: Tensor | None = None) -> Quantized:
        """z [..., D], mask [...] bool -> Quantized with ids [..., Q]; usage and perplexity are means of the levels."""
        with torch.autocast(z.device.type, enabled=False), self._one_update() as once:
            left = valid_rows("residual", z, self.dim, mask).float()
            parts: list[Quantized] = []
            for level in range(self._active_levels(z.device)):
                part = self._level(level)(left / self.scale**level)
                part = part._replace(embeds=part.embeds * self.scale**level)
                left = left - part.embeds.detach()
                parts.append(part)
            embeds = torch.stack([part.embeds for part in parts]).sum(0).to(z.dtype)
            loss = torch.stack([part.loss for part in parts]).sum()
        ids = torch.stack([part.indices for part in parts], dim=-1)
        ids = nn.functional.pad(ids, (0, self.levels - len(parts)), value=-1)
        lead = z.shape[:-1]
        return Quantized(padded(embeds, lead, mask), padded(ids, lead, mask, fill=-1), loss, merged_stats(parts) | once)

    def lookup(self, indices: Tensor) -> Tensor:
        """ids [..., Q] int64 -> embeds [..., D] float32; a level whose id is -1 adds nothing.

        Raises: ValueError if there are not Q ids to a vector, or ids out of range.
        """
        if not indices.ndim or indices.shape[-1] != self.levels:
            raise ValueError(f"residual: expected ids [..., {self.levels}], got {list(indices.shape)}")
        codes = [self._level(i).lookup(ids) * self.scale**i for i, ids in enumerate(indices.unbind(-1))]
        return torch.stack(codes).sum(0)

    def _level(self, level: int) -> Any:
        return self.quantizers[0 if self.shared else level]

    def _one_update(self) -> AbstractContextManager[dict[str, Tensor]]:
        """A shared codebook must not move between the levels of one call: its ids would belong to several tables."""
        one_update = getattr(self.quantizers[0], "one_update", None) if self.shared and self.training else None
        return nullcontext({}) if one_update is None else one_update()

    def _active_levels(self, device: torch.device) -> int:
        if not (self.training and self.quantize_dropout):
            return self.levels
        drawn = torch.randint(1, self.levels + 1, ()).to(device)
        # Levels that synchronise their codebooks must run on all processes or on none.
        if distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1:
            distributed.broadcast(drawn, src=0)
        return int(drawn)


def merged_stats(parts: list[Quantized]) -> dict[str, Tensor]:
    """Stats of several quantizers as one: loss terms added up, usage and perplexity averaged."""
    stats = {name: torch.stack([part.stats[name] for part in parts]).sum() for name in parts[0].stats}
    return {name: value / len(parts) if name in _AVERAGED else value for name, value in stats.items()}
