"""AdaptFormer: a narrow branch beside the MLP of every block (Chen et al., NeurIPS 2022, arXiv:2205.13535, equation 4).

mlp(x) + s up(ReLU(down(x))), both on the block's normed tokens x [B, N, D], with a bottleneck of r << D.
"""

from typing import Any

from torch import Tensor, nn


class AdaptedMlp(nn.Module):
    """An MLP and its adapter, in the MLP's place; `up` starts at zero, so that the block starts as it was."""

    def __init__(self, mlp: nn.Module, width: int, bottleneck: int, scale: float) -> None:
        super().__init__()
        self.mlp = mlp
        like = next(mlp.parameters())
        self.down = nn.Linear(width, bottleneck).to(like)
        self.up = nn.Linear(bottleneck, width).to(like)
        self.scale = scale
        nn.init.kaiming_uniform_(self.down.weight, a=5**0.5)
        for zero in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(zero)

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, D] -> [B, N, D]."""
        out: Tensor = self.mlp(x) + self.scale * self.up(nn.functional.relu(self.down(x)))
        return out


def add_adapters(vit: Any, bottleneck: int = 64, *, scale: float = 0.1) -> list[AdaptedMlp]:
    """Freeze a timm VisionTransformer and put an adapter beside each block's MLP; they alone take a gradient.

    Raises: ValueError for a bottleneck of nothing, or if there are adapters already.
    """
    if bottleneck < 1:
        raise ValueError(f"adapters: expected a bottleneck of at least 1, got {bottleneck}")
    if any(isinstance(block.mlp, AdaptedMlp) for block in vit.blocks):
        raise ValueError("adapters: expected a backbone without any, this one has adapters already")
    vit.requires_grad_(False)
    adapted = []
    for block in vit.blocks:
        block.mlp = AdaptedMlp(block.mlp, vit.embed_dim, bottleneck, scale)
        adapted.append(block.mlp)
    return adapted
