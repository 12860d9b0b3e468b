"""The linear probe's features: the backbone's own final feature, and nothing learned (B images, D width)."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from vistok.protocols import ReadoutOutput
from vistok.readouts._frozen_backbone import FrozenBackbone
from vistok.registry import register
from vistok.tokens import TokenSpec, TokenTensor


@register
class Linear(FrozenBackbone):
    """What a linear head learns on when there is no readout: one group, one token."""

    cannot: frozenset[str] = frozenset({"fullgraph", "learn"})

    def __init__(self, vit: nn.Module | Mapping[str, Any], *, normalize: bool = False) -> None:
        """normalize: divide the feature by its length. Raises: as `FrozenBackbone`."""
        super().__init__(vit)
        self.name = "linear"
        self.normalize = normalize

    @property
    def groups(self) -> tuple[int, ...]:
        """One group, the pooled feature."""
        return (self.backbone.pooled_width,)

    def forward(self, images: Tensor) -> ReadoutOutput:
        """images [B, 3, H, W] as the backbone takes them -> features [B, P], queries [B, 0, 0, D]."""
        with torch.no_grad():
            tokens, pooled = self.run_backbone(images)
        features = nn.functional.normalize(pooled, dim=-1, eps=1e-12) if self.normalize else pooled
        return ReadoutOutput(features, pooled, tokens.new_empty(len(tokens), 0, 0, self.backbone.width), tokens)

    def tokens(self, images: Tensor) -> TokenTensor:
        """images as of `forward` -> the feature as one token, embeds [B, 1, P]."""
        spec = TokenSpec(self.name, self.backbone.pooled_width, grid=(1,), order="1d")
        return TokenTensor(spec, embeds=self(images).features[:, None])
