"""Continuous tokens of latent diffusion's KL autoencoders (arXiv:2112.10752) with 16x16 pixels a token.

KL-16 of MAR (arXiv:2406.11838): 16 channels, used as z * 0.2325. VA-VAE (arXiv:2501.01423): 32 channels, attention in
the decoder too, used as (z - mean) / std with the statistics that its authors publish beside the weights; without them
generators fail, and this file takes them as settings. Pixels in [-1, 1]; tokens are the posterior's mean unless drawn.
B images, H and W pixels, h and w rows and columns of tokens, N = h*w, D channels.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from huggingface_hub import PyTorchModelHubMixin
from torch import Tensor, nn

from vistok.layers.gaussian import Gaussian
from vistok.layers.grid_vq import Reconstruction
from vistok.layers.image_checks import check_finite, check_images, pad_to_multiple
from vistok.layers.ldm_vae import LdmVae
from vistok.layers.normalizer import LatentNormalizer, NormalizedLatent, RawLatent
from vistok.layers.preprocess import Preprocess
from vistok.registry import register
from vistok.rows import grid_coords
from vistok.tokens import TokenSpec, TokenTensor

# What training left in the file: losses, and VA-VAE's frozen vision encoder with the projection onto its features.
_OF_TRAINING = ("loss.", "foundation_model.", "linear_proj.")


@register
class LdmKl(nn.Module, PyTorchModelHubMixin, library_name="vistok", license="apache-2.0"):
    """embeds = (z - latent_mean) / latent_std, per channel."""

    cannot: frozenset[str] = frozenset({"budget"})

    def __init__(
        self,
        *,
        ch: int = 128,
        ch_mult: Sequence[int] = (1, 1, 2, 2, 4),
        num_res_blocks: int = 2,
        dim: int = 16,
        decoder_attention: bool = False,
        latent_mean: float | Sequence[float] = 0.0,
        latent_std: float | Sequence[float] = 1.0,
        kl_weight: float = 1e-6,
        preprocess: dict[str, Any] | None = None,
    ) -> None:
        """ch: width of the finest level, times `ch_mult` at each; decoder_attention: at the level of the latents.

        latent_mean, latent_std: of raw latents over the training images, one for all channels or one for each of `dim`.
        Raises: ValueError unless there are 1 or `dim` of them, finite, and every std is positive.
        """
        super().__init__()
        vae = LdmVae(ch, ch_mult, num_res_blocks, num_res_blocks + 1, dim, decoder_attention)
        self.encoder, self.quant_conv = vae.encoder, vae.quant_conv
        self.post_quant_conv, self.decoder = vae.post_quant_conv, vae.decoder
        self.name = "ldm_kl"
        self.patch, self.dim, self.kl_weight = 2 ** (len(ch_mult) - 1), dim, kl_weight
        self.codebook_sizes: tuple[int, ...] = ()
        self.preprocess = Preprocess(**(preprocess or {}))
        mean, std = _per_channel("latent_mean", latent_mean, dim), _per_channel("latent_std", latent_std, dim)
        if min(std) <= 0:
            raise ValueError(f"ldm_kl: expected latent_std > 0, got {min(std)}")
        # Settings, which config.json keeps, and no weights: the authors' files do not hold them.
        self.normalizer = LatentNormalizer(dim, persistent=False)
        self.normalizer.mean.copy_(torch.tensor(mean))
        self.normalizer.std.copy_(torch.tensor(std))

    @property
    def spec(self) -> TokenSpec:
        """What all token-tensors of this tokenizer share; grid and image size come with each batch."""
        return TokenSpec(self.name, self.dim, (), patch=self.patch)

    def encode(
        self,
        images: Tensor,
        *,
        budget: int | Tensor | None = None,
        sample: bool = False,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
    ) -> TokenTensor:
        """images [B, 3, H, W] in [0, 1] -> tokens in raster order: embeds [B, N, D], normalised.

        sample: draw latents with `generator`, one or one per image, else their mean. Sides that are no multiples of
        `patch` are mirrored below and to the right, and cropped by `decode`.
        Raises: ValueError naming the shape or range that is wrong, images whose latents are not finite, or a budget: a
        grid has no shorter form.
        """
        if budget is not None:
            raise ValueError(f"{self.name}: expected no budget, a grid tokenizer makes h*w tokens; prune them instead")
        check_images(self.name, images)
        posterior = self.posterior(pad_to_multiple(images, self.patch))
        latents = posterior.sample(generator) if sample else posterior.mean
        check_finite(self.name, latents, f"latents from {latents.dtype}")
        rows, cols = latents.shape[1:3]
        embeds = self.normalizer.normalize(RawLatent(latents.flatten(1, 2))).values
        spec = TokenSpec(self.name, self.dim, (), (rows, cols), self.patch, tuple(images.shape[2:]))
        coords = grid_coords(rows, cols, images.shape[0], images.device)
        return TokenTensor(spec=spec, embeds=embeds, coords=coords)

    def decode(self, tokens: TokenTensor) -> Tensor:
        """Tokens of `encode` -> images [B, 3, H, W] in [0, 1], cropped to the encoded size.

        Raises: ValueError if tokens are missing from the grid or have no embeds.
        """
        spec = tokens.spec
        if len(spec.grid) != 2 or tokens.num_slots != spec.grid[0] * spec.grid[1]:
            raise ValueError(f"{self.name}: expected all tokens of a grid {spec.grid}, got N={tokens.num_slots}")
        if tokens.embeds is None:
            raise ValueError(f"{self.name}: expected embeds, the tokens of this model have no ids to look up")
        latents = self.normalizer.denormalize(NormalizedLatent(tokens.embeds)).values
        images = self._images(latents.unflatten(1, spec.grid))
        height, width = spec.image_size or images.shape[2:]
        return images[:, :, :height, :width].clamp(0.0, 1.0)

    def forward(self, images: Tensor) -> Reconstruction:
        """images [B, 3, H, W] in [0, 1], sides multiples of `patch` -> what a training step needs, drawn latents."""
        posterior = self.posterior(images)
        kl = posterior.kl()
        return Reconstruction(self._images(posterior.sample()), self.kl_weight * kl, {"kl": kl.detach()})

    def posterior(self, images: Tensor) -> Gaussian:
        """images [B, 3, H, W] in [0, 1], sides multiples of `patch` -> Gaussian over raw latents [B, h, w, D]."""
        moments: Tensor = self.quant_conv(self.encoder((images * 2 - 1).to(self.quant_conv.weight.dtype)))
        return Gaussian.from_moments(moments.permute(0, 2, 3, 1))

    def rename_keys(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The authors' names are ours; what belongs to training only is left out."""
        return {name: value for name, value in tensors.items() if not name.startswith(_OF_TRAINING)}

    def _images(self, latents: Tensor) -> Tensor:
        """latents [B, h, w, D] -> images [B, 3, H, W] around [0, 1], not clamped."""
        latents = latents.to(self.post_quant_conv.weight.dtype).permute(0, 3, 1, 2)
        pixels: Tensor = self.decoder(self.post_quant_conv(latents))
        return (pixels + 1) / 2


def _per_channel(name: str, value: float | Sequence[float], dim: int) -> list[float]:
    values = [float(value)] * dim if isinstance(value, int | float) else [float(each) for each in value]
    if len(values) != dim or not all(math.isfinite(each) for each in values):
        raise ValueError(f"ldm_kl: expected {name} finite, one or {dim} of them, got {value}")
    return values
