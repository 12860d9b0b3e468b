"""The VQGAN of MaskGIT (arXiv:2202.04200): convolutions without attention, 16x16 pixels a code at five levels.

Below KARL it is a whole tokenizer, in TiTok its decoder alone turns codes into pixels. What is odd and is kept, because
released weights depend on it: a residual block whose width changes adds its own output through a 1x1 convolution and
drops its input. B images, C channels, h and w rows and columns of codes, K codes.
"""

import re
from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vistok.ops.nearest_code import nearest_code


class VqganBlock(nn.Module):
    """norm, SiLU, 3x3, norm, SiLU, 3x3 without bias; beside it the input, or where the width changes 1x1 of itself."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.norm1 = _norm(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.norm2 = _norm(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.nin_shortcut = nn.Conv2d(outputs, outputs, 1, bias=False) if inputs != outputs else None

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs, H, W] -> [B, outputs, H, W]."""
        h = self.conv1(nn.functional.silu(self.norm1(x)))
        h = self.conv2(nn.functional.silu(self.norm2(h)))
        out: Tensor = h + (x if self.nin_shortcut is None else self.nin_shortcut(h))
        return out


class _Level(nn.Module):
    def __init__(self, inputs: int, outputs: int, blocks: int, *, upsample: bool = False) -> None:
        super().__init__()
        self.block = nn.ModuleList(VqganBlock(inputs if i == 0 else outputs, outputs) for i in range(blocks))
        self.upsample = _Upsample(outputs) if upsample else None

    def forward(self, x: Tensor) -> Tensor:
        for block in self.block:
            x = block(x)
        return x if self.upsample is None else self.upsample(x)


class _Upsample(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(nn.functional.interpolate(x, scale_factor=2.0, mode="nearest"))
        return out


def _middle(width: int, blocks: int) -> nn.Sequential:
    return nn.Sequential(OrderedDict((f"block_{i + 1}", VqganBlock(width, width)) for i in range(blocks)))


class VqganEncoder(nn.Module):
    """Images [B, 3, H, W] -> features [B, z_channels, h, w]."""

    def __init__(self, ch: int, ch_mult: Sequence[int], num_res_blocks: int, z_channels: int) -> None:
        super().__init__()
        widths = [ch * factor for factor in (1, *ch_mult)]
        self.conv_in = nn.Conv2d(3, ch, 3, padding=1, bias=False)
        self.down = nn.ModuleList(_Level(widths[i], widths[i + 1], num_res_blocks) for i in range(len(ch_mult)))
        self.mid = _middle(widths[-1], 2)
        self.norm_out = _norm(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], z_channels, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Sides are halved once less than there are levels."""
        x = self.conv_in(images)
        for number, level in enumerate(self.down):
            x = level(x if number == 0 else nn.functional.avg_pool2d(x, 2))
        out: Tensor = self.conv_out(nn.functional.silu(self.norm_out(self.mid(x))))
        return out


class VqganDecoder(nn.Module):
    """Codes [B, z_channels, h, w] -> images [B, 3, H, W], not clamped."""

    def __init__(
        self, ch: int, ch_mult: Sequence[int], num_res_blocks: int, z_channels: int, mid_blocks: int = 2
    ) -> None:
        super().__init__()
        widths = [ch * factor for factor in ch_mult]
        self.conv_in = nn.Conv2d(z_channels, widths[-1], 3, padding=1)
        self.mid = _middle(widths[-1], mid_blocks)
        self.up = nn.ModuleList(
            _Level(widths[min(i + 1, len(widths) - 1)], width, num_res_blocks, upsample=i > 0)
            for i, width in enumerate(widths)
        )
        self.norm_out = _norm(widths[0])
        self.conv_out = nn.Conv2d(widths[0], 3, 3, padding=1)

    def forward(self, codes: Tensor) -> Tensor:
        """Sides are doubled once less than there are levels."""
        x = self.mid(self.conv_in(codes))
        for level in reversed(self.up):
            x = level(x)
        out: Tensor = self.conv_out(nn.functional.silu(self.norm_out(x)))
        return out


class _CodeTable(nn.Module):
    def __init__(self, codes: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(codes, width)
        nn.init.uniform_(self.embedding.weight, -1 / codes, 1 / codes)


class MaskGitVqgan(nn.Module):
    """Encoder, K codes and decoder under the authors' names; `width` of a code is `z_channels`."""

    def __init__(
        self,
        ch: int = 128,
        ch_mult: Sequence[int] = (1, 1, 2, 2, 4),
        num_res_blocks: int = 2,
        decoder_num_res_blocks: int = 2,
        z_channels: int = 256,
        n_embed: int = 1024,
    ) -> None:
        super().__init__()
        self.encoder = VqganEncoder(ch, ch_mult, num_res_blocks, z_channels)
        self.decoder = VqganDecoder(ch, ch_mult, decoder_num_res_blocks, z_channels)
        self.quantize = _CodeTable(n_embed, z_channels)

    @property
    def codebook(self) -> Tensor:
        """[K, z_channels]."""
        return self.quantize.embedding.weight

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """images [B, 3, H, W] -> features before quantization [B, z_channels, h, w], nearest codes [B, h*w] int64."""
        features: Tensor = self.encoder(images)
        rows = features.flatten(2).transpose(1, 2)
        return features, nearest_code(rows.float(), self.codebook.float())

    def decode_soft(self, logits: Tensor, grid: tuple[int, int]) -> Tensor:
        """logits [B, h*w, K] -> images [B, 3, H, W] of the codes' mean under softmax, not of the likeliest code."""
        return decode_grid(self.decoder, soft_codes(logits, self.codebook), grid)


def soft_codes(logits: Tensor, codebook: Tensor) -> Tensor:
    """softmax(logits [B, N, K]) @ codebook [K, D] -> [B, N, D]."""
    return torch.softmax(logits, -1) @ codebook


def decode_grid(decoder: nn.Module, values: Tensor, grid: tuple[int, int]) -> Tensor:
    """values [B, h*w, D] laid out on the grid, through a convolutional decoder -> [B, 3, H, W]."""
    images: Tensor = decoder(values.transpose(1, 2).unflatten(2, grid))
    return images


def renamed_parts(name: str) -> str:
    """A tensor's name in open-muse and TiTok to the name that KARL's authors gave the same layer."""
    name = name.replace(".upsample_conv.", ".upsample.conv.")
    return re.sub(r"\.mid\.(\d+)\.", lambda found: f".mid.block_{int(found[1]) + 1}.", name)


def _norm(width: int) -> nn.GroupNorm:
    return nn.GroupNorm(32, width, eps=1e-6)
