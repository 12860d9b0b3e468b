"""Masked feature prediction (MaskFeat, arXiv:2112.09133): what a frozen teacher says at places that were hidden.

B images, N tokens of a grid (gh, gw), D width of the teacher.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional


class FeatureHead(nn.Module):
    """LayerNorm and a multilayer perceptron from tokens to the teacher's width."""

    def __init__(self, width: int, teacher_dim: int) -> None:
        super().__init__()
        inner = max(width, teacher_dim)
        self.net = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, inner), nn.GELU(), nn.Linear(inner, teacher_dim))

    def forward(self, tokens: Tensor) -> Tensor:
        """[B, N, W] -> [B, N, D]."""
        out: Tensor = self.net(tokens)
        return out


def draw_mask(images: int, tokens: int, ratio: float, share: float) -> Tensor:
    """[B, N] bool by torch's generator: `share` of the images (on average) have round(ratio N) hidden, the others none.

    Raises: ValueError for a ratio or share outside [0, 1].
    """
    if not (0 <= ratio <= 1 and 0 <= share <= 1):
        raise ValueError(f"mask: expected ratio and share in [0, 1], got {ratio} and {share}")
    order = torch.rand(images, tokens).argsort(1).argsort(1)
    return (order < round(ratio * tokens)) & (torch.rand(images, 1) < share)


def on_grid(features: Tensor, grid: tuple[int, int]) -> Tensor:
    """A teacher's features [B, D, h, w] bilinearly on a student's grid: [B, N, D] float32."""
    if tuple(features.shape[2:]) != grid:
        features = functional.interpolate(features.float(), size=grid, mode="bilinear", align_corners=False)
    return features.float().flatten(2).transpose(1, 2)


def feature_loss(prediction: Tensor, target: Tensor, masked: Tensor, visible_weight: float = 0.0) -> Tensor:
    """1 - cosine of prediction and layer-normed target [B, N, D], mean over `masked` [B, N] bool; [] and 0 if none is.

    visible_weight: how much the other places count.
    """
    normed = functional.layer_norm(target, target.shape[-1:])
    distance = 1 - functional.cosine_similarity(prediction.float(), normed, dim=-1)
    weights = torch.where(masked, 1.0, visible_weight)
    return (distance * weights).sum() / weights.sum().clamp(min=1e-6)
