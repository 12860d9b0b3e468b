"""How far a predicted map is from its target: what the VQ-VAE of depth maps, masks and normals may be trained with.

p predicted, t target, both [B, C, H, W] unless a function says otherwise; mean over what is counted -> [].
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

_SMALLEST = 1e-6
_SILOG_MEAN = 0.5


def mse_above_zero(predicted: Tensor, target: Tensor) -> Tensor:
    """Squared error where t > 0 (sensors write 0 where they saw nothing); 0 if that is nowhere."""
    valid = target > 0
    return (predicted - target).square()[valid].sum() / valid.sum().clamp(min=1)


def silog(predicted: Tensor, target: Tensor) -> Tensor:
    """sqrt(mean d^2 - 0.5 (mean d)^2), d = log t - log p where t > 0 (arXiv:1406.2283, eq. 4); 0 if that is nowhere.

    p counts as at least 1e-6: a network's output may be negative, where no logarithm is.
    """
    valid = target > 0
    if not bool(valid.any()):
        return predicted.sum() * 0
    difference = target[valid].log() - predicted[valid].clamp(min=_SMALLEST).log()
    # The gradient of a root is infinite at 0, where prediction and target agree.
    return (difference.square().mean() - _SILOG_MEAN * difference.mean().square()).clamp(min=_SMALLEST**2).sqrt()


def class_cross_entropy(predicted: Tensor, target: Tensor) -> Tensor:
    """p [B, classes, H, W] logits, t [B, 1, H, W] class numbers, -1 = not counted; 0 if none is counted."""
    classes = target[:, 0].long()
    total = F.cross_entropy(predicted, classes, ignore_index=-1, reduction="sum")
    return total / (classes >= 0).sum().clamp(min=1)


def cosine_and_mse(predicted: Tensor, target: Tensor) -> Tensor:
    """1 - cos(p, t) over the channels + 0.1 (p - t)^2: for surface normals, t of length 1."""
    cosine = F.cosine_similarity(predicted, target, dim=1)
    return (1 - cosine).mean() + 0.1 * F.mse_loss(predicted, target)


MAP_LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mse": F.mse_loss,
    "l1": F.l1_loss,
    "smooth_l1": F.smooth_l1_loss,
    "mse_above_zero": mse_above_zero,
    "silog": silog,
    "cross_entropy": class_cross_entropy,
    "cosine": cosine_and_mse,
}


def unit_normals(maps: Tensor) -> Tensor:
    """maps [B, 3, H, W] -> the same directions at length 1; where there is none, towards the camera (0, 0, 1)."""
    length = torch.linalg.vector_norm(maps, dim=1, keepdim=True)
    forward = maps.new_tensor((0.0, 0.0, 1.0)).view(1, 3, 1, 1)
    return torch.where(length > _SMALLEST, maps / length.clamp(min=_SMALLEST), forward)
