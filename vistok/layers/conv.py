"""Convolutional parts of the small autoencoders: local in space, so that tiles of an image can be computed apart."""

import torch
from torch import Tensor, nn


class ResidualBlock(nn.Module):
    """x + conv(silu(conv(rms(x)))), both 3x3, over [B, width, H, W].

    The norm is over the channels of one position (a GroupNorm would mix in the whole image and make tiling wrong).
    """

    reach = 2  # positions on each side that an output depends on

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        nn.init.kaiming_normal_(self.conv1.weight)
        nn.init.kaiming_normal_(self.conv2.weight)
        with torch.no_grad():  # blocks start near the identity, or a deep stack without GroupNorm diverges
            self.conv2.weight.mul_(0.1)
        nn.init.zeros_(self.conv1.bias)  # type: ignore[arg-type]
        nn.init.zeros_(self.conv2.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """[B, width, H, W] -> the same shape."""
        out: Tensor = self.conv2(nn.functional.silu(self.conv1(channel_rms_norm(x))))
        return x + out


def channel_rms_norm(x: Tensor) -> Tensor:
    """Divide [B, C, H, W] by the root mean square over C, computed in float32."""
    scale = x.square().mean(1, keepdim=True, dtype=torch.float32).add(1e-6).rsqrt()
    return x * scale.to(x.dtype)
