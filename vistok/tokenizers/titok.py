"""TiTok: An Image is Worth 32 Tokens for Reconstruction and Generation (arXiv:2406.07550).

[class | N grid tokens | K latents] -> encoder -> K latents -> codes (VQ) or a Gaussian (VAE) -> decoder with N mask
tokens -> either logits over MaskGIT's codes, whose VQGAN decoder makes pixels of their mean ("legacy"), or pixels.

What is odd and is kept, because released weights depend on it: legacy encoders reshape [B, K, W] to [B, W, K] where a
transpose was meant. B images, N = h*w grid tokens, K latents, W width, D latent width.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from huggingface_hub import PyTorchModelHubMixin
from torch import Tensor, nn

from vistok.layers.codebook import Codebook
from vistok.layers.gaussian import Gaussian
from vistok.layers.image_checks import check_images
from vistok.layers.maskgit_vqgan import VqganDecoder, decode_grid, renamed_parts, soft_codes
from vistok.layers.preprocess import Preprocess
from vistok.layers.transformer import Block, init_like_vit, run_blocks
from vistok.registry import register
from vistok.tokens import TokenSpec, TokenTensor


class Reconstruction(NamedTuple):
    """images [B, 3, H, W] unclamped, decoded [B, C, h, w] or [B, 3, H, W], loss [] of the bottleneck."""

    images: Tensor
    decoded: Tensor
    loss: Tensor


class _Encoder(nn.Module):
    def __init__(self, width: int, layers: int, heads: int, cells: int, patch: int, latents: int, out: int) -> None:
        super().__init__()
        scale = width**-0.5
        self.patch_embed = nn.Conv2d(3, width, patch, stride=patch)
        self.class_embedding = nn.Parameter(scale * torch.randn(1, width))
        self.positional_embedding = nn.Parameter(scale * torch.randn(cells + 1, width))
        self.latent_token_positional_embedding = nn.Parameter(scale * torch.randn(latents, width))
        self.ln_pre = nn.LayerNorm(width)
        self.transformer = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.ln_post = nn.LayerNorm(width)
        self.conv_out = nn.Conv2d(width, out, 1)

    def forward(self, images: Tensor, latent_tokens: Tensor) -> Tensor:
        """images [B, 3, H, W], latent_tokens [K, W] -> [B, K, W]."""
        patches = self.patch_embed(images).flatten(2).transpose(1, 2)
        batch = len(images)
        grid = torch.cat([self.class_embedding.expand(batch, 1, -1), patches], 1) + self.positional_embedding
        latents = (latent_tokens + self.latent_token_positional_embedding).expand(batch, -1, -1)
        y = run_blocks(self.transformer, self.ln_pre(torch.cat([grid, latents], 1)))
        out: Tensor = self.ln_post(y[:, grid.shape[1] :])
        return out


class _Decoder(nn.Module):
    def __init__(self, width: int, layers: int, heads: int, cells: int, latents: int, dim: int) -> None:
        super().__init__()
        scale = width**-0.5
        self.decoder_embed = nn.Linear(dim, width)
        self.class_embedding = nn.Parameter(scale * torch.randn(1, width))
        self.positional_embedding = nn.Parameter(scale * torch.randn(cells + 1, width))
        self.mask_token = nn.Parameter(scale * torch.randn(1, 1, width))
        self.latent_token_positional_embedding = nn.Parameter(scale * torch.randn(latents, width))
        self.ln_pre = nn.LayerNorm(width)
        self.transformer = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.ln_post = nn.LayerNorm(width)

    def forward(self, latents: Tensor) -> Tensor:
        """latents [B, K, D] -> [B, N, W]."""
        batch, cells = len(latents), len(self.positional_embedding) - 1
        masks = self.mask_token.expand(batch, cells, -1)
        grid = torch.cat([self.class_embedding.expand(batch, 1, -1), masks], 1) + self.positional_embedding
        given = self.decoder_embed(latents) + self.latent_token_positional_embedding
        y = run_blocks(self.transformer, self.ln_pre(torch.cat([grid.to(given.dtype), given], 1)))
        out: Tensor = self.ln_post(y[:, 1 : 1 + cells])
        return out


class _CodeDecoder(_Decoder):
    def __init__(self, codes: int, width: int, *sizes: int) -> None:
        super().__init__(width, *sizes)
        self.ffn = nn.Sequential(nn.Conv2d(width, 2 * width, 1), nn.Tanh(), nn.Conv2d(2 * width, codes, 1))

    def predict(self, latents: Tensor, grid: tuple[int, int]) -> Tensor:
        """latents [B, K, D] -> logits [B, codes, h, w]."""
        return decode_grid(self.ffn, self(latents), grid)


class _PixelDecoder(_Decoder):
    def __init__(self, patch: int, width: int, *sizes: int) -> None:
        super().__init__(width, *sizes)
        self.patch = patch
        self.ffn = nn.Sequential(nn.Conv2d(width, 3 * patch**2, 1))
        self.conv_out = nn.Conv2d(3, 3, 3, padding=1)

    def predict(self, latents: Tensor, grid: tuple[int, int]) -> Tensor:
        """latents [B, K, D] -> pixels [B, 3, H, W]; a patch comes as (row, column, channel)."""
        patches = decode_grid(self.ffn, self(latents), grid).unflatten(1, (self.patch, self.patch, 3))
        images: Tensor = self.conv_out(patches.permute(0, 3, 4, 1, 5, 2).flatten(2, 3).flatten(3, 4))
        return images


@register
class TiTok(nn.Module, PyTorchModelHubMixin, library_name="vistok", license="apache-2.0"):
    """A fixed number of 1-D tokens per image, of one image size."""

    cannot: frozenset[str] = frozenset({"budget", "any_size"})

    def __init__(
        self,
        *,
        encoder_width: int = 512,
        encoder_layers: int = 8,
        encoder_heads: int = 8,
        decoder_width: int = 512,
        decoder_layers: int = 8,
        decoder_heads: int = 8,
        latents: int = 128,
        dim: int = 12,
        codebook_size: int | None = 4096,
        normalise: bool = True,
        commitment: float = 0.25,
        legacy: bool = True,
        pixel_decoder: dict[str, Any] | None = None,
        image_size: Sequence[int] = (256, 256),
        patch: int = 16,
        kl_weight: float = 1e-6,
        preprocess: dict[str, Any] | None = None,
    ) -> None:
        """codebook_size: None = Gaussian latents (VAE). normalise: codes of length 1. legacy: as the first releases.

        pixel_decoder: sizes of MaskGIT's decoder and codes below a legacy one (ch, ch_mult, num_res_blocks, z_channels,
        n_embed). image_size: (H, W) of all images. Raises: ValueError for sizes that do not fit each other.
        """
        super().__init__()
        if any(side % patch for side in image_size):
            raise ValueError(f"titok: expected image_size in multiples of patch={patch}, got {list(image_size)}")
        self.name = "titok"
        self.patch, self.dim, self.legacy, self.kl_weight = patch, dim, legacy, kl_weight
        self.image_size = (image_size[0], image_size[1])
        self.grid = (image_size[0] // patch, image_size[1] // patch)
        self.preprocess = Preprocess(**(preprocess or {}))
        cells = self.grid[0] * self.grid[1]
        moments = dim if codebook_size is not None else 2 * dim
        self.latent_tokens = nn.Parameter(encoder_width**-0.5 * torch.randn(latents, encoder_width))
        self.encoder = _Encoder(encoder_width, encoder_layers, encoder_heads, cells, patch, latents, moments)
        sizes = (decoder_width, decoder_layers, decoder_heads, cells, latents, dim)
        self.quantize = (
            None if codebook_size is None else Codebook(codebook_size, dim, commitment=commitment, normalise=normalise)
        )
        below = {"ch": 128, "ch_mult": (1, 1, 2, 2, 4), "num_res_blocks": 2, "z_channels": 256, "n_embed": 1024}
        below |= pixel_decoder or {}
        codes: Any = below.pop("n_embed")
        self.decoder: _CodeDecoder | _PixelDecoder = (
            _CodeDecoder(codes, *sizes) if legacy else _PixelDecoder(patch, *sizes)
        )
        settings: Any = below
        self.pixel_quantize = Codebook(codes, settings["z_channels"], normalise=False) if legacy else None
        self.pixel_decoder = VqganDecoder(**settings, mid_blocks=settings["num_res_blocks"]) if legacy else None
        init_like_vit(self.encoder)
        init_like_vit(self.decoder)

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """Entries of the codebook, () for Gaussian latents."""
        return () if self.quantize is None else (self.quantize.embedding.num_embeddings,)

    @property
    def spec(self) -> TokenSpec:
        """What all token-tensors of this tokenizer share."""
        return TokenSpec(self.name, self.dim, self.codebook_sizes, self.grid, self.patch, self.image_size, order="1d")

    def encode(
        self,
        images: Tensor,
        *,
        budget: int | Tensor | None = None,
        sample: bool = False,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
    ) -> TokenTensor:
        """images [B, 3, H, W] in [0, 1] of `image_size` -> K tokens each: embeds [B, K, D], indices if there are codes.

        sample: draw Gaussian latents with `generator`, one or one per image, else their mean.
        Raises: ValueError naming the shape or range that is wrong, or a budget: K is fixed.
        """
        if budget is not None:
            raise ValueError(f"{self.name}: expected no budget, it makes {len(self.latent_tokens)} tokens always")
        self._check(images)
        moments = self.moments(images)
        if self.quantize is not None:
            quantized = self.quantize(moments)
            return TokenTensor(spec=self.spec, embeds=quantized.embeds, indices=quantized.indices)
        posterior = Gaussian.from_moments(moments)
        return TokenTensor(spec=self.spec, embeds=posterior.sample(generator) if sample else posterior.mean)

    def decode(self, tokens: TokenTensor) -> Tensor:
        """All K tokens of each image -> images [B, 3, H, W] in [0, 1]. Raises: ValueError if some are missing."""
        if tokens.num_slots != len(self.latent_tokens):
            raise ValueError(
                f"{self.name}: expected all {len(self.latent_tokens)} tokens of each image, got {tokens.num_slots}"
            )
        if tokens.embeds is not None:
            embeds = tokens.embeds
        elif self.quantize is not None and tokens.indices is not None:
            embeds = self.quantize.lookup(tokens.indices)
        else:
            raise ValueError(f"{self.name}: expected embeds, the tokens of this model have no ids to look up")
        return self.pixels(self.predict(embeds)).clamp(0.0, 1.0)

    def forward(self, images: Tensor) -> Reconstruction:
        """images [B, 3, H, W] in [0, 1] of `image_size` -> what a training step needs."""
        moments = self.moments(images)
        if self.quantize is not None:
            quantized = self.quantize(moments)
            embeds, loss = quantized.embeds, quantized.loss
        else:
            posterior = Gaussian.from_moments(moments)
            embeds, loss = posterior.sample(), self.kl_weight * posterior.kl()
        decoded = self.predict(embeds)
        return Reconstruction(self.pixels(decoded), decoded, loss)

    def moments(self, images: Tensor) -> Tensor:
        """images [B, 3, H, W] -> latents [B, K, D] before quantization, or mean and log-variance [B, K, 2D]."""
        latents = self.encoder(images, self.latent_tokens)
        batch, count, width = latents.shape
        columns = latents.reshape(batch, width, count) if self.legacy else latents.transpose(1, 2)
        moments: Tensor = self.encoder.conv_out(columns[..., None])
        return moments[..., 0].transpose(1, 2)

    def predict(self, embeds: Tensor) -> Tensor:
        """embeds [B, K, D] -> logits over MaskGIT's codes [B, C, h, w], or pixels [B, 3, H, W]."""
        return self.decoder.predict(embeds.to(self.latent_tokens.dtype), self.grid)

    def pixels(self, decoded: Tensor) -> Tensor:
        """What `predict` gave -> images [B, 3, H, W], not clamped."""
        if self.pixel_decoder is None or self.pixel_quantize is None:
            return decoded
        soft = soft_codes(decoded.flatten(2).transpose(1, 2), self.pixel_quantize.embedding.weight)
        return decode_grid(self.pixel_decoder, soft, self.grid)

    def rename_keys(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The authors' names of MaskGIT's decoder to those that KARL's authors gave the same layers."""
        return {
            renamed_parts(name) if name.startswith("pixel_decoder.") else name: value for name, value in tensors.items()
        }

    def _check(self, images: Tensor) -> None:
        check_images(self.name, images)
        if tuple(images.shape[2:]) != self.image_size:
            raise ValueError(
                f"{self.name}: expected images of {self.image_size[0]}x{self.image_size[1]} pixels, got "
                f"{images.shape[2]}x{images.shape[3]}; use model.preprocess"
            )
