"""A small convolutional autoencoder: one token per patch, discrete (any quantizer) or continuous (Gaussian, KL).

Pixel-unshuffle front, residual 3x3 blocks, two decoder resolutions, pixel-shuffle back (arXiv:1609.05158). No layer
sees the whole image, so any height and width work (reflect-pad, crop) and tiles with enough overlap leave no seam.
B images, C channels, H and W pixels, D token width; h and w are rows and columns of tokens.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from huggingface_hub import PyTorchModelHubMixin
from torch import Tensor, nn

from vistok.layers.conv import ResidualBlock
from vistok.layers.gaussian import Gaussian
from vistok.layers.image_checks import check_images, pad_to_multiple
from vistok.layers.normalizer import LatentNormalizer, NormalizedLatent, RawLatent
from vistok.layers.preprocess import Preprocess
from vistok.protocols import Quantized
from vistok.registry import create, register
from vistok.rows import grid_coords
from vistok.tokens import TokenSpec, TokenTensor


class Reconstruction(NamedTuple):
    """What training needs: images [B, C, H, W] unclamped, loss [] of the bottleneck, stats by name, ids if discrete."""

    images: Tensor
    loss: Tensor
    stats: dict[str, Tensor]
    indices: Tensor | None = None


@register
class Autoencoder(nn.Module, PyTorchModelHubMixin, library_name="vistok", license="apache-2.0"):
    """Tokens on a grid of `patch` x `patch` pixels; give `quantizer` (discrete) or `latent_channels` (continuous)."""

    cannot: frozenset[str] = frozenset({"budget"})

    def __init__(
        self,
        *,
        quantizer: dict[str, Any] | None = None,
        latent_channels: int | None = None,
        kl_weight: float = 1e-6,
        patch: int = 8,
        width: int = 112,
        fine_width: int = 48,
        encoder_blocks: int = 3,
        decoder_blocks: int = 4,
        fine_blocks: int = 2,
        preprocess: dict[str, Any] | None = None,
    ) -> None:
        """quantizer: {"method": a name, settings}; latent_channels: width of the Gaussian latent.

        Raises: ValueError unless exactly one of the two is given, the quantizer has a method and `patch` is even.
        """
        super().__init__()
        if (quantizer is None) == (latent_channels is None):
            raise ValueError("autoencoder: expected either quantizer= (discrete) or latent_channels= (continuous)")
        if patch < 2 or patch % 2:
            raise ValueError(f"autoencoder: expected an even patch >= 2, got {patch}")
        self.name = "autoencoder"
        self.patch = patch
        self.kl_weight = kl_weight
        self.preprocess = Preprocess(**(preprocess or {}))
        made: Any = None if quantizer is None else create("quantizer", **_named(quantizer))
        self.quantizer = made
        self.normalizer = None if latent_channels is None else LatentNormalizer(latent_channels)
        self.dim: int = made.dim if latent_channels is None else latent_channels
        dim = self.dim
        moments = dim if self.quantizer is not None else 2 * dim
        self.encoder = nn.Sequential(
            nn.PixelUnshuffle(patch),
            nn.Conv2d(3 * patch**2, width, 3, padding=1),
            *[ResidualBlock(width) for _ in range(encoder_blocks)],
            nn.Conv2d(width, moments, 1),
        )
        self.decoder = nn.Sequential(
            nn.Conv2d(dim, width, 3, padding=1),
            *[ResidualBlock(width) for _ in range(decoder_blocks)],
            nn.Conv2d(width, 4 * fine_width, 3, padding=1),
            nn.PixelShuffle(2),
            *[ResidualBlock(fine_width) for _ in range(fine_blocks)],
            nn.Conv2d(fine_width, 3 * (patch // 2) ** 2, 3, padding=1),
            nn.PixelShuffle(patch // 2),
        )
        self._encoder_reach = 1 + ResidualBlock.reach * encoder_blocks
        self._decoder_reach = (
            2 + ResidualBlock.reach * decoder_blocks + -(-(1 + ResidualBlock.reach * fine_blocks) // 2)
        )

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """Entries per codebook, () for continuous tokens."""
        return () if self.quantizer is None else self.quantizer.codebook_sizes

    @property
    def spec(self) -> TokenSpec:
        """What all token-tensors of this tokenizer share; grid and image size come with each batch."""
        return TokenSpec(self.name, self.dim, self.codebook_sizes, patch=self.patch)

    def encode(
        self,
        images: Tensor,
        *,
        budget: int | Tensor | None = None,
        tile: int | None = None,
        sample: bool = False,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
    ) -> TokenTensor:
        """images [B, 3, H, W] in [0, 1] -> tokens in raster order with embeds [B, h*w, D], and indices if discrete.

        tile: work on tiles of that many pixels, for large images in bounded memory; the same tokens up to rounding,
        recorded in the spec. sample: draw the Gaussian latent with `generator`, one or one per image, else its mean.
        Raises: ValueError naming the shape or range that is wrong, or a budget: a grid has no shorter form.
        """
        if budget is not None:
            raise ValueError(f"{self.name}: expected no budget, a grid tokenizer makes h*w tokens; prune them instead")
        check_images(self.name, images)
        padded = pad_to_multiple(images, self.patch)
        moments = self._tiled(self._moments, padded, tile, self._encoder_reach * self.patch, self.patch, 1)
        tokens = self._tokens(moments, sample, generator)
        rows, cols = moments.shape[1:3]
        spec = TokenSpec(
            self.name, self.dim, self.codebook_sizes, (rows, cols), self.patch, tuple(images.shape[2:]), tile=tile or 0
        )
        coords = grid_coords(rows, cols, images.shape[0], images.device)
        return TokenTensor(spec=spec, coords=coords, **tokens)

    def decode(self, tokens: TokenTensor) -> Tensor:
        """Tokens of `encode` -> images [B, 3, H, W] in [0, 1], cropped to the encoded size.

        Tiled if `tokens.spec.tile` is set. Raises: ValueError if tokens are missing from the grid.
        """
        spec = tokens.spec
        if len(spec.grid) != 2 or tokens.num_slots != spec.grid[0] * spec.grid[1]:
            raise ValueError(f"{self.name}: expected all tokens of a grid {spec.grid}, got N={tokens.num_slots}")
        embeds = tokens.embeds if tokens.embeds is not None else self.quantizer.lookup(tokens.indices)
        if self.normalizer is not None:
            embeds = self.normalizer.denormalize(NormalizedLatent(embeds)).values
        latents = embeds.reshape(embeds.shape[0], *spec.grid, self.dim).permute(0, 3, 1, 2)
        tile = spec.tile // self.patch if spec.tile else None
        images = self._tiled(self._pixels, latents, tile, self._decoder_reach, 1, self.patch)
        height, width = spec.image_size or images.shape[1:3]
        return images.permute(0, 3, 1, 2)[:, :, :height, :width].clamp(0.0, 1.0)

    def forward(self, images: Tensor) -> Reconstruction:
        """images [B, 3, H, W] in [0, 1], sides multiples of `patch` -> what a training step needs."""
        moments = self._moments(images)
        indices: Tensor | None = None
        if self.quantizer is not None:
            quantized: Quantized = self.quantizer(moments)
            latents, indices, loss, stats = quantized
        else:
            posterior = Gaussian.from_moments(moments)
            kl = posterior.kl()
            latents, loss, stats = posterior.sample(), self.kl_weight * kl, {"kl": kl.detach()}
        pixels = self._pixels(latents.permute(0, 3, 1, 2)).permute(0, 3, 1, 2).float()
        return Reconstruction(pixels, loss, stats, indices)

    def set_latent_statistics(self, mean: Tensor, std: Tensor) -> None:
        """Mean and std [D] of raw latents over training images, measured after training a continuous model."""
        if self.normalizer is None:
            raise ValueError(f"{self.name}: expected a continuous autoencoder, discrete tokens are not normalised")
        self.normalizer.set_statistics(mean, std)

    def _moments(self, images: Tensor) -> Tensor:
        moments: Tensor = self.encoder(images - 0.5)
        return moments.permute(0, 2, 3, 1)

    def _pixels(self, latents: Tensor) -> Tensor:
        pixels: Tensor = self.decoder(latents.to(next(self.decoder.parameters()).dtype))
        return pixels.permute(0, 2, 3, 1) + 0.5

    def _tokens(
        self, moments: Tensor, sample: bool, generator: torch.Generator | Sequence[torch.Generator] | None
    ) -> dict[str, Tensor]:
        flat = moments.flatten(1, 2)
        if self.quantizer is not None:
            quantized: Quantized = self.quantizer(flat)
            return {"embeds": quantized.embeds, "indices": quantized.indices}
        posterior = Gaussian.from_moments(flat)
        raw = RawLatent(posterior.sample(generator) if sample else posterior.mean)
        assert self.normalizer is not None
        return {"embeds": self.normalizer.normalize(raw).values}

    def _tiled(
        self, fn: Callable[[Tensor], Tensor], x: Tensor, tile: int | None, halo: int, shrink: int, grow: int
    ) -> Tensor:
        """Apply fn: [B, C, H, W] -> [B, H*grow/shrink, W*grow/shrink, F] tile by tile, each with a `halo` around it."""
        if tile is None:
            return fn(x)
        if tile < shrink or tile % shrink:
            raise ValueError(f"{self.name}: expected tile to be a positive multiple of {self.patch}, got {tile * grow}")
        height, width = x.shape[2:]
        out: Tensor | None = None
        for top, bottom in _spans(height, tile):
            for left, right in _spans(width, tile):
                y0, x0 = max(top - halo, 0), max(left - halo, 0)
                part = fn(x[:, :, y0 : bottom + halo, x0 : right + halo])
                inner = part[
                    :,
                    (top - y0) * grow // shrink : (bottom - y0) * grow // shrink,
                    (left - x0) * grow // shrink : (right - x0) * grow // shrink,
                ]
                if out is None:
                    shape = (len(x), height * grow // shrink, width * grow // shrink, part.shape[-1])
                    out = part.new_empty(shape)
                here = (slice(top * grow // shrink, bottom * grow // shrink),)
                out[:, here[0], left * grow // shrink : right * grow // shrink] = inner
        assert out is not None
        return out


def _named(quantizer: dict[str, Any]) -> dict[str, Any]:
    settings = dict(quantizer)
    if "method" not in settings:
        raise ValueError(f"autoencoder: expected quantizer to have a method such as 'fsq', got {quantizer}")
    return {"name": settings.pop("method"), **settings}


def _spans(length: int, step: int) -> Iterator[tuple[int, int]]:
    for start in range(0, length, step):
        yield start, min(start + step, length)
