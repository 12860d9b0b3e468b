"""The Haar wavelet transform of images: each level halves the sides and makes four channels of one.

Over blocks [[a, b], [c, d]]: ll = (a+b+c+d)/4, lh = (a+b-c-d)/4, hl = (a-b+c-d)/4, hh = (a-b-c+d)/4, as channels
[all ll | all lh | all hl | all hh]: half of the orthonormal transform. B images, C channels, H rows, W columns.
"""

import torch
from torch import Tensor


def haar(images: Tensor, levels: int) -> Tensor:
    """images [B, C, H, W] -> [B, C 4^levels, H/2^levels, W/2^levels]; every level transforms all channels."""
    for _ in range(levels):
        top, bottom = images[:, :, 0::2], images[:, :, 1::2]
        a, b, c, d = top[..., 0::2], top[..., 1::2], bottom[..., 0::2], bottom[..., 1::2]
        images = torch.cat([a + b + c + d, a + b - c - d, a - b + c - d, a - b - c + d], 1) / 4
    return images


def inverse_haar(bands: Tensor, levels: int) -> Tensor:
    """The images of which `haar` made bands [B, C 4^levels, h, w]."""
    for _ in range(levels):
        ll, lh, hl, hh = bands.chunk(4, 1)
        top = torch.stack([ll + lh + hl + hh, ll + lh - hl - hh], -1).flatten(-2)
        bottom = torch.stack([ll - lh + hl - hh, ll - lh - hl + hh], -1).flatten(-2)
        bands = torch.stack([top, bottom], -2).flatten(2, 3)
    return bands
