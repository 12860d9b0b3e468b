"""Augmentation of a batch of crops by torch's own generator, so that a seeded step draws the same again."""

import torch
from torch import Tensor


def augmented(images: Tensor, jitter: float) -> Tensor:
    """images [B, 3, S, S] in [0, 1], each mirrored, turned and recoloured at random.

    jitter: how far gain and shade of each colour channel may move; contrast moves as far. 0 leaves colours alone.
    """
    batch = len(images)
    for dims, chosen in (((2,), torch.rand(batch) < 0.2), ((3,), torch.rand(batch) < 0.5)):
        images = torch.where(chosen[:, None, None, None], images.flip(dims), images)
    turned = torch.rand(batch) < 0.2
    images = torch.where(turned[:, None, None, None], images.transpose(2, 3), images)
    if not jitter:
        return images
    mean = images.mean((2, 3), keepdim=True)
    contrast = 1 + jitter * (2 * torch.rand(batch, 1, 1, 1) - 1)
    gain = 1 + 0.5 * jitter * (2 * torch.rand(batch, 3, 1, 1) - 1)
    shade = 0.5 * jitter * (2 * torch.rand(batch, 3, 1, 1) - 1)
    return ((images - mean) * contrast + mean).mul(gain).add(shade).clamp(0, 1)
