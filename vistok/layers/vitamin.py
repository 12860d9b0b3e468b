"""ViTamin-L (arXiv:2404.02132) and its mirror image, as UniTok (arXiv:2502.20321) encodes and decodes with.

Two stages of inverted-bottleneck convolutions halve the sides four times in all, then a ViT without position embeddings
works on the grid. Names are the authors', which for the encoder are timm's. B images, N = h*w grid cells, W width.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

_EXPANSION = 4


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of [B, C, H, W]."""

    def __init__(self, width: int) -> None:
        super().__init__(width, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        """The same shape."""
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class _HalvedShortcut(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.expand = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.expand(nn.functional.avg_pool2d(x, 3, stride=2, padding=1, count_include_pad=False))
        return out


class _Doubled(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(nn.functional.interpolate(x, scale_factor=2.0, mode="nearest"))
        return out


class _Bottleneck(nn.Module):
    """norm, 1x1 to four times the width, GELU, 3x3 depthwise, GELU, 1x1; the sides halve, double or stay."""

    def __init__(self, inputs: int, outputs: int, *, halve: bool = False, double: bool = False) -> None:
        super().__init__()
        middle = _EXPANSION * outputs
        self.shortcut: nn.Module = nn.Identity()
        if halve:
            self.shortcut = _HalvedShortcut(inputs, outputs)
        elif double:
            self.shortcut = _Doubled(inputs, outputs)
        self.pre_norm = ChannelNorm(inputs)
        self.conv1_1x1 = nn.Conv2d(inputs, middle, 1)
        self.up = _Doubled(middle, middle) if double else nn.Identity()
        self.conv2_kxk = nn.Conv2d(middle, middle, 3, stride=2 if halve else 1, padding=1, groups=middle)
        self.conv3_1x1 = nn.Conv2d(middle, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs, H, W] -> [B, outputs, H', W']."""
        h = self.up(nn.functional.gelu(self.conv1_1x1(self.pre_norm(x))))
        out: Tensor = self.conv3_1x1(nn.functional.gelu(self.conv2_kxk(h))) + self.shortcut(x)
        return out


class GatedMlp(nn.Module):
    """norm, GELU(w0 x) w1 x, w2, with the tanh form of GELU (arXiv:2002.05202, GEGLU)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.w0 = nn.Linear(width, 2 * width)
        self.w1 = nn.Linear(width, 2 * width)
        self.w2 = nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, W] -> the same shape."""
        x = self.norm(x)
        out: Tensor = self.w2(nn.functional.gelu(self.w0(x), approximate="tanh") * self.w1(x))
        return out


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        seen = nn.functional.scaled_dot_product_attention(q, k, v)
        out: Tensor = self.proj(seen.transpose(1, 2).flatten(2))
        return out


class _Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = _Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = GatedMlp(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


def _blocks(width: int, depth: int, heads: int) -> nn.Sequential:
    return nn.Sequential(*(_Block(width, heads) for _ in range(depth)))


class _Stem(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, stride=2, padding=1)
        self.norm1 = ChannelNorm(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv2(nn.functional.gelu(self.norm1(self.conv1(x))))
        return out


class _StemBack(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = _Doubled(width, width)
        self.norm1 = ChannelNorm(width)
        self.conv2 = nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv2(nn.functional.gelu(self.norm1(self.conv1(x))))
        return out


class _Pool(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.norm = ChannelNorm(inputs)
        self.proj = nn.Conv2d(inputs, outputs, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.proj(self.norm(x))
        return out


class _Stages(nn.Module):
    def __init__(self, widths: Sequence[int], depths: Sequence[int]) -> None:
        super().__init__()
        fine, coarse, width = widths
        self.stem = _Stem(fine)
        self.stages = nn.ModuleList(
            nn.Sequential(*(_Bottleneck(i if n == 0 else o, o, halve=n == 0) for n in range(depth)))
            for i, o, depth in zip((fine, fine), (fine, coarse), depths, strict=True)
        )
        self.pool = _Pool(coarse, width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for stage in self.stages:
            x = stage(x)
        out: Tensor = self.pool(x)
        return out


class ViTaminEncoder(nn.Module):
    """Images [B, 3, H, W] -> grid features [B, W, H/16, W/16]."""

    def __init__(self, widths: Sequence[int], depths: Sequence[int], layers: int, heads: int) -> None:
        """widths: of stem and first stage, second stage, ViT; depths: blocks of the two stages."""
        super().__init__()
        self.patch_embed = nn.ModuleDict({"backbone": _Stages(widths, depths)})
        self.blocks = _blocks(widths[-1], layers, heads)
        self.norm = nn.LayerNorm(widths[-1], eps=1e-6)

    def forward(self, images: Tensor) -> Tensor:
        """Sides are divided by 16."""
        grid = self.patch_embed["backbone"](images)
        tokens = self.norm(self.blocks(grid.flatten(2).transpose(1, 2)))
        out: Tensor = tokens.transpose(1, 2).unflatten(2, grid.shape[2:])
        return out


class ViTaminDecoder(nn.Module):
    """Grid features [B, W, h, w] -> images [B, 3, 16h, 16w], not clamped."""

    def __init__(self, widths: Sequence[int], depths: Sequence[int], layers: int, heads: int) -> None:
        """widths and depths as of the encoder, from fine to coarse."""
        super().__init__()
        fine, coarse, width = widths
        self.blocks = _blocks(width, layers, heads)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.up_conv1 = _Doubled(width, coarse)
        self.up_conv2 = nn.Sequential(*(_Bottleneck(coarse, coarse, double=n == 0) for n in range(depths[1])))
        self.up_conv3 = nn.Sequential(
            *(_Bottleneck(coarse if n == 0 else fine, fine, double=n == 0) for n in range(depths[0]))
        )
        self.up_conv4 = _StemBack(fine)

    def forward(self, features: Tensor) -> Tensor:
        """Sides are multiplied by 16."""
        tokens = self.norm(self.blocks(features.flatten(2).transpose(1, 2)))
        x = tokens.transpose(1, 2).unflatten(2, features.shape[2:])
        out: Tensor = self.up_conv4(self.up_conv3(self.up_conv2(self.up_conv1(x))))
        return out


class AttentionProjection(nn.Module):
    """From width to another that divides it or is divided by it: attention plus a linear map, then a gated MLP.

    Narrower: heads of the new width, whose mean is the result. Wider: heads of the old width, side by side.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        """Raises: ValueError unless one width divides the other."""
        super().__init__()
        wide, narrow = max(inputs, outputs), min(inputs, outputs)
        if wide % narrow:
            raise ValueError(f"expected widths of which one divides the other, got {inputs} and {outputs}")
        self.norm1 = nn.LayerNorm(inputs)
        self.attn = _BiasedAttention(inputs, outputs, wide // narrow)
        self.proj = nn.Linear(inputs, outputs)
        self.norm3 = nn.LayerNorm(inputs)
        self.norm2 = nn.LayerNorm(outputs)
        self.mlp = GatedMlp(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, inputs] -> [B, N, outputs]."""
        x = self.proj(self.norm3(x)) + self.attn(self.norm1(x))
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class _BiasedAttention(nn.Module):
    """Attention whose keys have no bias."""

    zero_k_bias: Tensor

    def __init__(self, inputs: int, outputs: int, heads: int) -> None:
        super().__init__()
        wide = max(inputs, outputs)
        self.heads, self.narrows = heads, inputs > outputs
        self.qkv = nn.Linear(inputs, 3 * wide, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(wide))
        self.v_bias = nn.Parameter(torch.zeros(wide))
        self.register_buffer("zero_k_bias", torch.zeros(wide))
        self.proj = nn.Linear(outputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        bias = torch.cat([self.q_bias, self.zero_k_bias, self.v_bias])
        projected = nn.functional.linear(x, self.qkv.weight, bias)
        q, k, v = projected.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        seen = nn.functional.scaled_dot_product_attention(q, k, v)
        joined = seen.mean(1) if self.narrows else seen.transpose(1, 2).flatten(2)
        out: Tensor = self.proj(joined)
        return out
