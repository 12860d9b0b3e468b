"""VQT whose summaries one attention block fuses, the other readout of the authors' code (Tu et al., arXiv:2212.03220).

The final feature and every query's output, each divided by its length, pass through one new transformer block; the
first row is the feature:
    F = block([f, Z_1, .., Z_L])[0]
With `layer_mlp` a new MLP per layer comes first and a learned embedding per layer, zero at first, is added to the final
feature and to each layer's output; that takes one query per block. B images, L layers, T queries, D width.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from vistok.readouts._combine import EPS
from vistok.readouts.vqt import VQT
from vistok.registry import register


@register
class VQTFusion(VQT):
    """VQT with a feature of the backbone's width, whatever the number of layers and queries."""

    def __init__(
        self,
        vit: nn.Module | Mapping[str, Any],
        num_tokens: int = 1,
        *,
        heads: int = 4,
        mlp_ratio: float = 4.0,
        layer_mlp: bool = False,
        **options: Any,
    ) -> None:
        """heads, mlp_ratio: of the new block. options: as of `VQT`, but readout, normalize and include_final.

        Raises: as `VQT`; TypeError for these; ValueError for a final feature of another width than the tokens, for
        heads that do not divide it, or for several queries with `layer_mlp`.
        """
        fixed = {"readout", "normalize", "include_final"} & options.keys()
        if fixed:
            raise TypeError(f"vqt_fusion: expected no {', '.join(sorted(fixed))}, the fusion decides about that")
        super().__init__(vit, num_tokens, **options)
        self.name = "vqt_fusion"
        width = self.backbone.width
        if self.backbone.pooled_width != width:
            raise ValueError(
                f"vqt_fusion: expected a final feature of the tokens' width {width}, got {self.backbone.pooled_width}"
            )
        if heads < 1 or width % heads:
            raise ValueError(f"vqt_fusion: heads: expected a divisor of the width {width}, got {heads}")
        if layer_mlp and num_tokens != 1:
            raise ValueError(f"vqt_fusion: layer_mlp: expected one query per block, got {num_tokens}")
        self.fusion = Block(width, heads, mlp_ratio, qkv_bias=True).to(self.like)
        self.layer_mlps: nn.ModuleList | None = None
        if layer_mlp:
            hidden = int(width * mlp_ratio)
            made = [nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width)) for _ in self.layers]
            self.layer_mlps = nn.ModuleList(made).to(self.like)
            self.layer_embed = nn.Parameter(self.like.new_zeros(1, len(self.layers) + 1, width))

    @property
    def groups(self) -> tuple[int, ...]:
        """One group, of the backbone's width."""
        return (self.backbone.width,)

    def _features(self, pooled: Tensor, read: Sequence[Tensor | None]) -> Tensor:
        rows = torch.cat([pooled[:, None], *(part for part in read if part is not None)], 1)
        rows = nn.functional.normalize(rows, dim=-1, eps=EPS)
        if self.layer_mlps is not None:
            own = [mlp(row) for mlp, row in zip(self.layer_mlps, rows[:, 1:].unbind(1), strict=True)]
            rows = torch.stack([rows[:, 0], *own], 1) + self.layer_embed
        fused: Tensor = self.fusion(rows)[:, 0]
        return fused

    def _active(self, skip: Collection[int]) -> list[int]:
        """Every layer goes into the one group there is."""
        if skip:
            raise ValueError(f"{self.name}: expected nothing to skip, all layers make one group, got {list(skip)}")
        return super()._active(skip)
