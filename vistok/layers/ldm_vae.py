"""The KL autoencoder of latent diffusion (arXiv:2112.10752) of 16x16 pixels a latent, as MAR and VA-VAE published it.

B images, C channels, h and w rows and columns of latents. Keys are the authors'.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from vistok.layers.gaussian import Gaussian


class LdmBlock(nn.Module):
    """norm, SiLU, 3x3, norm, SiLU, 3x3; beside it the input, through 1x1 where the width changes."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.norm1 = _norm(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.norm2 = _norm(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.nin_shortcut = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else None

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs, H, W] -> [B, outputs, H, W]."""
        h = self.conv1(nn.functional.silu(self.norm1(x)))
        h = self.conv2(nn.functional.silu(self.norm2(h)))
        out: Tensor = h + (x if self.nin_shortcut is None else self.nin_shortcut(x))
        return out


class LdmAttention(nn.Module):
    """One head over all positions of [B, C, H, W], 1x1 convolutions for query, key, value and output."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = _norm(width)
        self.q = nn.Conv2d(width, width, 1)
        self.k = nn.Conv2d(width, width, 1)
        self.v = nn.Conv2d(width, width, 1)
        self.proj_out = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """The same shape."""
        h = self.norm(x)
        q, k, v = (part(h).flatten(2).transpose(1, 2) for part in (self.q, self.k, self.v))
        seen = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape)
        out: Tensor = x + self.proj_out(seen)
        return out


class _Resample(nn.Module):
    def __init__(self, width: int, *, down: bool) -> None:
        super().__init__()
        self.down = down
        self.conv = nn.Conv2d(width, width, 3, stride=2) if down else nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        ready = nn.functional.pad(x, (0, 1, 0, 1)) if self.down else nn.functional.interpolate(x, scale_factor=2.0)
        out: Tensor = self.conv(ready)
        return out


class LdmLevel(nn.Module):
    """Blocks of one resolution, each before an attention if `attend`; then half as fine (`down`) or twice (`up`)."""

    def __init__(
        self, inputs: int, outputs: int, blocks: int, *, attend: bool = False, down: bool = False, up: bool = False
    ) -> None:
        super().__init__()
        self.block = nn.ModuleList(LdmBlock(inputs if i == 0 else outputs, outputs) for i in range(blocks))
        self.attn = nn.ModuleList(LdmAttention(outputs) for _ in range(blocks if attend else 0))
        self.downsample = _Resample(outputs, down=True) if down else None
        self.upsample = _Resample(outputs, down=False) if up else None

    def forward(self, x: Tensor) -> Tensor:
        for number, block in enumerate(self.block):
            x = block(x)
            if len(self.attn):
                x = self.attn[number](x)
        for resample in (self.downsample, self.upsample):
            x = x if resample is None else resample(x)
        return x


class LdmMiddle(nn.Module):
    """Block, attention, block at the coarsest resolution."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.block_1 = LdmBlock(width, width)
        self.attn_1 = LdmAttention(width)
        self.block_2 = LdmBlock(width, width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.block_2(self.attn_1(self.block_1(x)))
        return out


class LdmEncoder(nn.Module):
    """Images [B, 3, H, W] -> moments [B, 2 z_channels, h, w]; attention at the last level and in the middle."""

    def __init__(self, ch: int, ch_mult: Sequence[int], num_res_blocks: int, z_channels: int) -> None:
        super().__init__()
        widths, last = [ch * factor for factor in (1, *ch_mult)], len(ch_mult) - 1
        self.conv_in = nn.Conv2d(3, ch, 3, padding=1)
        self.down = nn.ModuleList(
            LdmLevel(widths[i], widths[i + 1], num_res_blocks, attend=i == last, down=i < last) for i in range(last + 1)
        )
        self.mid = LdmMiddle(widths[-1])
        self.norm_out = _norm(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], 2 * z_channels, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        """Sides are halved once less than there are levels."""
        x = self.conv_in(images)
        for level in self.down:
            x = level(x)
        out: Tensor = self.conv_out(nn.functional.silu(self.norm_out(self.mid(x))))
        return out


class LdmDecoder(nn.Module):
    """Latents [B, z_channels, h, w] -> images [B, 3, H, W], not clamped; attention in the middle.

    attend: at the level of the latents too.
    """

    def __init__(
        self, ch: int, ch_mult: Sequence[int], num_res_blocks: int, z_channels: int, *, attend: bool = False
    ) -> None:
        super().__init__()
        widths = [ch * factor for factor in ch_mult]
        last = len(widths) - 1
        self.conv_in = nn.Conv2d(z_channels, widths[-1], 3, padding=1)
        self.mid = LdmMiddle(widths[-1])
        self.up = nn.ModuleList(
            LdmLevel(widths[min(i + 1, last)], width, num_res_blocks, attend=attend and i == last, up=i > 0)
            for i, width in enumerate(widths)
        )
        self.norm_out = _norm(widths[0])
        self.conv_out = nn.Conv2d(widths[0], 3, 3, padding=1)

    def forward(self, latents: Tensor) -> Tensor:
        """Sides are doubled once less than there are levels."""
        x = self.mid(self.conv_in(latents))
        for level in reversed(self.up):
            x = level(x)
        out: Tensor = self.conv_out(nn.functional.silu(self.norm_out(x)))
        return out


class LdmVae(nn.Module):
    """Encoder to a Gaussian of `z_channels`, decoder from its values; latents are unscaled on both sides."""

    def __init__(
        self,
        ch: int = 128,
        ch_mult: Sequence[int] = (1, 1, 2, 2, 4),
        num_res_blocks: int = 2,
        decoder_num_res_blocks: int = 3,
        z_channels: int = 16,
        decoder_attention: bool = False,
    ) -> None:
        super().__init__()
        self.encoder = LdmEncoder(ch, ch_mult, num_res_blocks, z_channels)
        self.decoder = LdmDecoder(ch, ch_mult, decoder_num_res_blocks, z_channels, attend=decoder_attention)
        self.quant_conv = nn.Conv2d(2 * z_channels, 2 * z_channels, 1)
        self.post_quant_conv = nn.Conv2d(z_channels, z_channels, 1)

    def posterior(self, images: Tensor) -> Gaussian:
        """images [B, 3, H, W] -> Gaussian over [B, h, w, z_channels]."""
        moments: Tensor = self.quant_conv(self.encoder(images))
        return Gaussian.from_moments(moments.permute(0, 2, 3, 1))

    def decode(self, latents: Tensor) -> Tensor:
        """latents [B, z_channels, h, w] -> images [B, 3, H, W], not clamped."""
        images: Tensor = self.decoder(self.post_quant_conv(latents))
        return images


def _norm(width: int) -> nn.GroupNorm:
    return nn.GroupNorm(32, width, eps=1e-6)
