"""The improved VQGAN of MAGVIT-v2 (arXiv:2310.05737, appendix A) for images, as Open-MAGVIT2 built it.

Convolutions without attention; strided convolutions down, depth-to-space up; before every level of the decoder a
normalisation whose scale and bias come from the code. Keys are Open-MAGVIT2's.
B images, C channels, H and W pixels, D code channels, h and w rows and columns of codes.
"""

from collections.abc import Sequence

from torch import Tensor, nn


class Magvit2Block(nn.Module):
    """norm, swish, 3x3, norm, swish, 3x3 without bias; beside it the input, through 1x1 where the width changes."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.norm1 = _norm(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.norm2 = _norm(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.nin_shortcut = nn.Conv2d(inputs, outputs, 1, bias=False) if inputs != outputs else None

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs, H, W] -> [B, outputs, H, W]."""
        h = self.conv1(nn.functional.silu(self.norm1(x)))
        h = self.conv2(nn.functional.silu(self.norm2(h)))
        out: Tensor = h + (x if self.nin_shortcut is None else self.nin_shortcut(x))
        return out


class _Upsample(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, 4 * width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Depth to space: of 4C channels the first C are the upper left pixels, unlike those of pixel_shuffle."""
        y = self.conv1(x).unflatten(1, (2, 2, x.shape[1]))
        out: Tensor = y.permute(0, 3, 4, 1, 5, 2).flatten(2, 3).flatten(3, 4)
        return out


class _Level(nn.Module):
    def __init__(self, inputs: int, outputs: int, blocks: int, *, down: bool = False, up: bool = False) -> None:
        super().__init__()
        self.block = nn.ModuleList(Magvit2Block(inputs if i == 0 else outputs, outputs) for i in range(blocks))
        self.downsample = nn.Conv2d(outputs, outputs, 3, stride=2, padding=1) if down else None
        self.upsample = _Upsample(outputs) if up else None

    def forward(self, x: Tensor) -> Tensor:
        for block in self.block:
            x = block(x)
        for resample in (self.downsample, self.upsample):
            x = x if resample is None else resample(x)
        return x


class AdaptiveNorm(nn.Module):
    """Group norm without weights of x, times gamma(std of the code), plus beta(mean of the code), per channel."""

    def __init__(self, code_channels: int, width: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(32, width, eps=1e-6, affine=False)
        self.gamma = nn.Linear(code_channels, width)
        self.beta = nn.Linear(code_channels, width)

    def forward(self, x: Tensor, code: Tensor) -> Tensor:
        """x [B, C, H, W], code [B, D, h, w] -> [B, C, H, W]; of a single code the deviation is 0."""
        values = code.flatten(2)
        count = values.shape[2]
        variance = values.var(-1, unbiased=False) * (count / max(count - 1, 1))
        scale, bias = self.gamma((variance + 1e-6).sqrt()), self.beta(values.mean(-1))
        out: Tensor = scale[..., None, None] * self.norm(x) + bias[..., None, None]
        return out


class Magvit2Encoder(nn.Module):
    """Images [B, 3, H, W] -> features [B, z_channels, h, w]."""

    def __init__(self, ch: int, ch_mult: Sequence[int], num_res_blocks: int, z_channels: int) -> None:
        super().__init__()
        widths, last = [ch * factor for factor in (1, *ch_mult)], len(ch_mult) - 1
        self.conv_in = nn.Conv2d(3, ch, 3, padding=1, bias=False)
        self.down = nn.ModuleList(
            _Level(widths[i], widths[i + 1], num_res_blocks, down=i < last) for i in range(last + 1)
        )
        self.mid_block = _middle(widths[-1], num_res_blocks)
        self.norm_out = _norm(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], z_channels, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Sides are halved once less than there are levels."""
        x = self.conv_in(images)
        for level in self.down:
            x = level(x)
        out: Tensor = self.conv_out(nn.functional.silu(self.norm_out(self.mid_block(x))))
        return out


class Magvit2Decoder(nn.Module):
    """Codes [B, z_channels, h, w] -> images [B, 3, H, W], not clamped."""

    def __init__(self, ch: int, ch_mult: Sequence[int], num_res_blocks: int, z_channels: int) -> None:
        super().__init__()
        widths = [ch * factor for factor in ch_mult]
        above = [*widths[1:], widths[-1]]
        self.conv_in = nn.Conv2d(z_channels, widths[-1], 3, padding=1)
        self.mid_block = _middle(widths[-1], num_res_blocks)
        self.up = nn.ModuleList(
            _Level(inputs, width, num_res_blocks, up=i > 0)
            for i, (inputs, width) in enumerate(zip(above, widths, strict=True))
        )
        self.adaptive = nn.ModuleList(AdaptiveNorm(z_channels, inputs) for inputs in above)
        self.norm_out = _norm(widths[0])
        self.conv_out = nn.Conv2d(widths[0], 3, 3, padding=1)

    def forward(self, codes: Tensor) -> Tensor:
        """Sides are doubled once less than there are levels."""
        x = self.mid_block(self.conv_in(codes))
        for norm, level in zip(reversed(self.adaptive), reversed(self.up), strict=True):
            x = level(norm(x, codes))
        out: Tensor = self.conv_out(nn.functional.silu(self.norm_out(x)))
        return out


def _middle(width: int, blocks: int) -> nn.Sequential:
    return nn.Sequential(*(Magvit2Block(width, width) for _ in range(blocks)))


def _norm(width: int) -> nn.GroupNorm:
    return nn.GroupNorm(32, width, eps=1e-6)
