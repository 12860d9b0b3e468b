"""ALF: one learned query attends to the class and mean tokens of all layers (Ciernik et al., arXiv:2601.09322).

Of every block's output the class token and the mean of the patches, 2 L tokens in all, are keys and values of a
multi-head cross-attention; what the query reads is the feature. Weights over layers come with it: which layers a task
needs. Nothing of the backbone is kept for backward but these tokens.

Inferred here, since the paper's text was read in part only: tokens are layer-normed without weights before they are
projected, so that blocks of any scale are heard, and the query starts normal with deviation 0.02. B images, L layers,
T queries, D width.
"""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from vistok.protocols import ReadoutOutput
from vistok.readouts._frozen_backbone import FrozenBackbone
from vistok.readouts._layers import chosen_blocks
from vistok.registry import register
from vistok.tokens import TokenSpec, TokenTensor


@register
class Alf(FrozenBackbone):
    """Cross-attention of learned queries over summary tokens of all layers of a frozen backbone."""

    cannot: frozenset[str] = frozenset({"fullgraph"})

    def __init__(
        self,
        vit: nn.Module | Mapping[str, Any],
        num_tokens: int = 1,
        *,
        heads: int = 4,
        attention_dropout: float = 0.0,
        layers: Sequence[int] | None = None,
    ) -> None:
        """num_tokens: learned queries T, side by side in the feature. layers: block ids (-1 is the last), None for all.

        Raises: ValueError for settings out of range; UnsupportedBackboneError for a backbone that is none.
        """
        super().__init__(vit)
        self.name = "alf"
        width = self.backbone.width
        self.layers = chosen_blocks(self.name, layers, len(self.backbone.blocks))
        if num_tokens < 1:
            raise ValueError(f"alf: num_tokens: expected at least 1, got {num_tokens}")
        if heads < 1 or width % heads:
            raise ValueError(f"alf: heads: expected a divisor of the width {width}, got {heads}")
        if not 0 <= attention_dropout < 1:
            raise ValueError(f"alf: attention_dropout: expected 0 <= attention_dropout < 1, got {attention_dropout}")
        self.num_tokens = num_tokens
        self.queries = nn.Parameter(self.like.new_empty(num_tokens, width).normal_(std=0.02))
        self.attention = nn.MultiheadAttention(width, heads, attention_dropout, batch_first=True).to(self.like)

    @property
    def groups(self) -> tuple[int, ...]:
        """One group: the queries side by side."""
        return (self.num_tokens * self.backbone.width,)

    def forward(self, images: Tensor) -> ReadoutOutput:
        """images [B, 3, H, W] as the backbone takes them -> features [B, T D], queries [B, 1, T, D]."""
        read, _, features, pooled = self._attend(images, False)
        return ReadoutOutput(read.flatten(1), pooled, read[:, None], features)

    def layer_weights(self, images: Tensor) -> Tensor:
        """How much each query hears each layer: [B, T, L], mean over heads, sums to 1 over layers."""
        _, weights, _, _ = self._attend(images, True)
        assert weights is not None
        by_layer: Tensor = weights.unflatten(2, (len(self.layers), -1)).sum(-1)
        return by_layer

    def tokens(self, images: Tensor) -> TokenTensor:
        """images as of `forward` -> embeds [B, T, D]."""
        spec = TokenSpec(self.name, self.backbone.width, grid=(1, self.num_tokens), order="1d")
        return TokenTensor(spec, embeds=self(images).queries[:, 0])

    def _attend(self, images: Tensor, want_weights: bool) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
        summaries: list[Tensor] = []

        def keep(_module: nn.Module, _args: Any, tokens: Tensor) -> None:
            parts = [tokens[:, self.backbone.prefix :].mean(1)]
            if self.backbone.has_class_token:
                parts.insert(0, tokens[:, 0])
            summaries.extend(parts)

        with ExitStack() as hooks, torch.no_grad():
            for layer in self.layers:
                hooks.callback(self.backbone.blocks[layer].register_forward_hook(keep).remove)
            features, pooled = self.run_backbone(images)
            heard = nn.functional.layer_norm(torch.stack(summaries, 1), (self.backbone.width,))
        queries = self.queries.expand(len(heard), -1, -1)
        read, weights = self.attention(queries, heard, heard, need_weights=want_weights)
        return read, weights, features, pooled
