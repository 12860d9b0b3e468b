"""The rectified-flow head of Ming-UniVision (arXiv:2510.06590, section 3.1): the velocity of one token, given a vector.

t = 1 is noise, t = 0 data; v = data - noise. y = TimeMLP(1000 t) + Linear(condition); blocks of a SwiGLU net whose
input is shifted and scaled and whose output is gated by y (arXiv:2212.09748). P tokens, C channels, Z width of a
condition, W width.
"""

import math

import torch
from torch import Tensor, nn

from vistok.layers.vit_block import EPS, SwiGlu

_FREQUENCIES = 256


class TimeEmbedding(nn.Module):
    """Cosines and sines of 1000 t at 128 rates each, then a multilayer perceptron."""

    def __init__(self, width: int) -> None:
        super().__init__()
        first, last = nn.Linear(_FREQUENCIES, width), nn.Linear(width, width)
        for layer in (first, last):
            _xavier(layer)
            nn.init.normal_(layer.weight, std=0.02)
        self.mlp = nn.Sequential(first, nn.SiLU(), last)

    def forward(self, t: Tensor) -> Tensor:
        """t [P] in [0, 1] -> [P, W]."""
        half = _FREQUENCIES // 2
        rates = torch.exp(-math.log(10000) / half * torch.arange(half, device=t.device, dtype=torch.float32))
        angles = 1000 * t.float()[:, None] * rates
        features = torch.cat([angles.cos(), angles.sin()], -1)
        out: Tensor = self.mlp(features.to(next(self.parameters()).dtype))
        return out


class _ResidualBlock(nn.Module):
    def __init__(self, width: int, mlp_ratio: float) -> None:
        super().__init__()
        self.in_ln = nn.LayerNorm(width, eps=EPS)
        self.mlp = SwiGlu(width, mlp_ratio)
        _xavier(self.mlp.w12)
        _xavier(self.mlp.w3)
        # Modulation starts at zero, so that blocks start as the identity.
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), _zero(nn.Linear(width, 3 * width)))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        shift, scale, gate = self.adaLN_modulation(y).chunk(3, -1)
        out: Tensor = x + gate * self.mlp(self.in_ln(x) * (1 + scale) + shift)
        return out


class _FinalLayer(nn.Module):
    def __init__(self, width: int, channels: int) -> None:
        super().__init__()
        self.norm_final = nn.LayerNorm(width, eps=EPS, elementwise_affine=False)
        self.linear = _zero(nn.Linear(width, channels))
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), _zero(nn.Linear(width, 2 * width)))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(y).chunk(2, -1)
        out: Tensor = self.linear(self.norm_final(x) * (1 + scale) + shift)
        return out


class _VelocityNet(nn.Module):
    def __init__(self, channels: int, condition: int, width: int, depth: int, mlp_ratio: float) -> None:
        super().__init__()
        self.time_embed = TimeEmbedding(width)
        self.cond_embed = _xavier(nn.Linear(condition, width))
        self.input_proj = _xavier(nn.Linear(channels, width))
        self.res_blocks = nn.ModuleList(_ResidualBlock(width, mlp_ratio) for _ in range(depth))
        self.final_layer = _FinalLayer(width, channels)

    def forward(self, x: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        y = self.time_embed(t) + self.cond_embed(condition)
        x = self.input_proj(x)
        for block in self.res_blocks:
            x = block(x, y)
        out: Tensor = self.final_layer(x, y)
        return out


class RectifiedFlowHead(nn.Module):
    """Velocity of tokens, each at its own time and under its own condition; keys as published, under `net`."""

    def __init__(
        self, channels: int, condition: int, *, width: int = 3072, depth: int = 12, mlp_ratio: float = 4
    ) -> None:
        """Raises: ValueError for sizes below 1."""
        super().__init__()
        sizes = {"channels": channels, "condition": condition, "width": width, "depth": depth}
        if min(sizes.values()) < 1 or mlp_ratio <= 0:
            raise ValueError(f"rectified flow: expected sizes >= 1, got {sizes} and mlp_ratio={mlp_ratio}")
        self.channels, self.condition = channels, condition
        self.net = _VelocityNet(channels, condition, width, depth, mlp_ratio)

    def forward(self, x: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        """x [P, C] at times t [P], condition [P, Z] -> velocity [P, C]."""
        velocity: Tensor = self.net(x, t, condition)
        return velocity


def _xavier(layer: nn.Linear) -> nn.Linear:
    nn.init.xavier_uniform_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def _zero(layer: nn.Linear) -> nn.Linear:
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
