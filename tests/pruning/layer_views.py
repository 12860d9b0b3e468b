"""Views of prompts for tests of layer pruners, written as strings: s system, v visual, t text, . padding.

Capital V begins another image where it follows a visual token.
"""

from typing import Any

import torch
from torch import Tensor

from vistok.protocols import LayerView


class Attention:
    """A layer's attention in full: maps [B, H, n, n], key heads [B, G, n, Dh]; `asked` are the rows wanted so far."""

    def __init__(self, maps: Tensor, keys: Tensor | None = None) -> None:
        self.maps, self.heads = maps, keys
        self.asked: list[Tensor] = []

    def __call__(self, rows: Tensor) -> Tensor:
        self.asked.append(rows)
        mean = self.maps.mean(1) * rows[:, :, None]
        return mean.sum(1) / rows.sum(1, keepdim=True).clamp(min=1)

    def keys(self) -> Tensor:
        assert self.heads is not None
        return self.heads


def causal_maps(batch: int, size: int, seed: int = 0, heads: int = 2) -> Tensor:
    """[batch, heads, size, size]: random softmax rows over what lies before."""
    draw = torch.Generator().manual_seed(seed)
    scores = torch.randn(batch, heads, size, size, generator=draw, dtype=torch.float64)
    return scores.masked_fill(torch.ones(size, size).triu(1).bool(), -torch.inf).softmax(-1).float()


def view_of(prompts: list[str], *, layers: int = 4, layer: int = -1, width: int = 6, **fields: Any) -> LayerView:
    """hidden [B, n, width] is random if not given among `fields`."""
    size = max(map(len, prompts))
    letters = [list(prompt.ljust(size, ".")) for prompt in prompts]
    visual = torch.tensor([[each in "vV" for each in row] for row in letters])
    begins = [
        [c in "vV" and (i == 0 or row[i - 1] not in "vV" or c == "V") for i, c in enumerate(row)] for row in letters
    ]
    valid = torch.tensor([[each != "." for each in row] for row in letters])
    system, behind = valid & (visual.cumsum(1) == 0), visual.flip(1).cumsum(1).flip(1) == 0
    counts = visual.sum(1)
    made: dict[str, Any] = {
        "hidden": torch.randn(len(prompts), size, width, generator=torch.Generator().manual_seed(1)),
        "visual": visual,
        "system": system,
        "text": valid & ~visual & ~system,
        "instruction": valid & behind & visual.any(1, keepdim=True),
        "valid": valid,
        "source": torch.arange(size).expand(len(prompts), -1),
        "image_ids": torch.where(visual, torch.tensor(begins).cumsum(1) - 1, -1),
        "slots": visual.to(torch.int8).sort(dim=1, descending=True, stable=True).indices[:, : int(counts.max())],
        "counts": counts,
        "original": counts,
    }
    return LayerView(layer, layers, **made | fields)
