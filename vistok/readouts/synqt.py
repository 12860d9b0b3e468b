"""SynQT: queries that depend on the image, made by a small network beside the frozen one (ECCV 2024, arXiv:2407.06964).

In front of each block a query synthesis module takes T learned prompts together with what the queries read in the block
before, attends among them and passes them through a feed-forward net; its output asks the block, query-only and with
the block's own frozen weights, as in VQT:
    [.., S] = [P_l; Z_{l-1}],  S += attn(LN(S)),  S += ffn(LN(S)),  Q_l = rows of the prompts,  Z_l = block_l(Q_l; X_l)
Gradients run through the queries of all blocks, never through the backbone's tokens.

The paper's module and its head are not published in full where we could read them. Inferred here: the order above, one
module per block of width `width` between a projection down and one up, the up-projection zero at first (so that
training starts at VQT), and VQT's features in the place of the paper's head. B images, T queries, D width.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vistok.readouts.vqt import VQT
from vistok.registry import register


@register
class SynQT(VQT):
    """VQT whose queries of a block follow from what those of the block before have read."""

    def __init__(
        self,
        vit: nn.Module | Mapping[str, Any],
        num_tokens: int = 1,
        *,
        width: int = 64,
        heads: int = 4,
        **options: Any,
    ) -> None:
        """width, heads: of the synthesis modules. options: as of `VQT`. Raises: as `VQT`; ValueError for the width."""
        super().__init__(vit, num_tokens, **options)
        self.name = "synqt"
        if heads < 1 or width < heads or width % heads:
            raise ValueError(f"synqt: expected a width in multiples of {heads} heads, got {width}")
        made = [QuerySynthesis(self.backbone.width, width, heads) for _ in self.layers]
        self.synthesis = nn.ModuleList(made).to(self.like)

    def _ask(self, place: int, before: Sequence[Tensor | None]) -> Tensor:
        queries: Tensor = self.queries[place][None]
        last = before[-1] if before else None
        if last is not None:
            queries = queries.expand(len(last), -1, -1)
        made: Tensor = self.synthesis[place](queries, last)
        return made

    def _active(self, skip: Collection[int]) -> list[int]:
        """A layer that nobody looks at is worked out all the same if a later one asks with what it has read."""
        active = super()._active(skip)
        return list(range(active[-1] + 1)) if active else []


class QuerySynthesis(nn.Module):
    """One block of attention and feed-forward net in a narrow space, added to the prompts."""

    def __init__(self, outer: int, width: int, heads: int) -> None:
        super().__init__()
        self.down = nn.Linear(outer, width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.ffn = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        self.up = nn.Linear(width, outer)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, prompts: Tensor, read: Tensor | None) -> Tensor:
        """prompts [b, T, D], read [B, T, D] of the block before, or None -> queries [b, T, D]."""
        together = prompts if read is None else torch.cat([prompts, read], 1)
        x = self.down(together)
        normed = self.norm1(x)
        x = x + self.attention(normed, normed, normed, need_weights=False)[0]
        x = x + self.ffn(self.norm2(x))
        queries: Tensor = prompts + self.up(x[:, : prompts.shape[1]])
        return queries
