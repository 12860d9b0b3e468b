"""The discrete image tokenizers of Cosmos (arXiv:2501.03575): 8x8 or 16x16 pixels a token, 64 000 codes (FSQ).

A Haar transform makes 4x4 pixels one position, a convolutional autoencoder with attention in the middle halves the
sides once or twice more, FSQ (arXiv:2309.15505) with levels 8, 8, 8, 5, 5, 5 rounds; pixels in [-1, 1]. Published as
TorchScript, `encoder.jit` and `decoder.jit` in one folder: read with `trust=True`, for their tensors only.
B images, D code width.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from vistok.layers.grid_vq import GridVq
from vistok.layers.haar import haar, inverse_haar
from vistok.layers.ldm_vae import LdmLevel, LdmMiddle
from vistok.registry import create, register

# What a TorchScript file holds beside its weights: constants of the transform and of FSQ.
_CONSTANTS = (".wavelets", "._arange", "quantizer._levels", "quantizer._basis", "quantizer.implicit_codebook")


class _Encoder(nn.Module):
    def __init__(self, widths: Sequence[int], blocks: int, z_channels: int, haar_levels: int, halvings: int) -> None:
        super().__init__()
        self.haar_levels = haar_levels
        self.conv_in = nn.Conv2d(3 * 4**haar_levels, widths[0], 3, padding=1)
        self.down = nn.ModuleList(
            LdmLevel(widths[i], widths[i + 1], blocks, down=i < halvings) for i in range(len(widths) - 1)
        )
        self.mid = LdmMiddle(widths[-1])
        self.norm_out = nn.GroupNorm(32, widths[-1], eps=1e-6)
        self.conv_out = nn.Conv2d(widths[-1], z_channels, 3, padding=1)

    def forward(self, pixels: Tensor) -> Tensor:
        """pixels [B, 3, H, W] -> [B, z_channels, h, w]."""
        x = self.conv_in(haar(pixels, self.haar_levels))
        for level in self.down:
            x = level(x)
        out: Tensor = self.conv_out(nn.functional.silu(self.norm_out(self.mid(x))))
        return out


class _Decoder(nn.Module):
    def __init__(self, widths: Sequence[int], blocks: int, z_channels: int, haar_levels: int, doublings: int) -> None:
        super().__init__()
        self.haar_levels = haar_levels
        levels = widths[1:]
        last = len(levels) - 1
        self.conv_in = nn.Conv2d(z_channels, levels[-1], 3, padding=1)
        self.mid = LdmMiddle(levels[-1])
        self.up = nn.ModuleList(
            LdmLevel(levels[min(i + 1, last)], width, blocks + 1, up=i > last - doublings)
            for i, width in enumerate(levels)
        )
        self.norm_out = nn.GroupNorm(32, levels[0], eps=1e-6)
        self.conv_out = nn.Conv2d(levels[0], 3 * 4**haar_levels, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        """z [B, z_channels, h, w] -> pixels [B, 3, H, W]."""
        x = self.mid(self.conv_in(z))
        for level in reversed(self.up):
            x = level(x)
        return inverse_haar(self.conv_out(nn.functional.silu(self.norm_out(x))), self.haar_levels)


class CosmosNets(GridVq):
    """The networks on both sides of the tokens, the same for codes (DI) and for vectors (CI)."""

    def __init__(
        self,
        name: str,
        *,
        patch: int,
        dim: int,
        codebook_sizes: tuple[int, ...],
        widths: Sequence[int],
        blocks: int,
        z_channels: int,
        haar_levels: int,
        preprocess: dict[str, Any] | None,
    ) -> None:
        """Raises: ValueError if patch is no power of two, or of more halvings than there are levels of the network."""
        halvings = patch.bit_length() - 1 - haar_levels
        if patch != 1 << (patch.bit_length() - 1) or not 0 <= halvings < len(widths):
            raise ValueError(
                f"{name}: expected patch to be a power of two from {2**haar_levels} to "
                f"{2 ** (haar_levels + len(widths) - 1)}, got {patch}"
            )
        super().__init__(name, patch=patch, dim=dim, codebook_sizes=codebook_sizes, preprocess=preprocess)
        self.encoder = _Encoder(widths, blocks, z_channels, haar_levels, halvings)
        self.quant_conv = nn.Conv2d(z_channels, dim, 1)
        self.post_quant_conv = nn.Conv2d(dim, z_channels, 1)
        self.decoder = _Decoder(widths, blocks, z_channels, haar_levels, halvings)

    def rename_keys(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The authors' scripts without the constants of the transform and of FSQ."""
        return {name: value for name, value in tensors.items() if not name.endswith(_CONSTANTS)}


@register
class CosmosDI(CosmosNets):
    """Finite scalar quantization of convolutional features over wavelets."""

    def __init__(
        self,
        *,
        patch: int = 16,
        ch: int = 128,
        ch_mult: Sequence[int] = (2, 4, 4),
        num_res_blocks: int = 2,
        z_channels: int = 256,
        haar_levels: int = 2,
        levels: Sequence[int] = (8, 8, 8, 5, 5, 5),
        preprocess: dict[str, Any] | None = None,
    ) -> None:
        """patch: pixels of a token's side, of which `haar_levels` halvings are the transform's; levels: of FSQ.

        Raises: ValueError if patch is no power of two, or of more halvings than there are levels of the network.
        """
        quantizer: Any = create("quantizer", "fsq", levels=levels)
        super().__init__(
            "cosmos_di",
            patch=patch,
            dim=quantizer.dim,
            codebook_sizes=quantizer.codebook_sizes,
            widths=[ch * factor for factor in (1, *ch_mult)],
            blocks=num_res_blocks,
            z_channels=z_channels,
            haar_levels=haar_levels,
            preprocess=preprocess,
        )
        self.quantize = quantizer
