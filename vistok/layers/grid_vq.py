"""One code for every patch of a grid: what published VQGANs and their kin share around their own networks.

z = quant_conv(encoder(x));  k = quantize(z);  x' = decoder(post_quant_conv(e_k)), with pixels between `black` and 1.
B images, H and W pixels, h and w rows and columns of codes, N = h*w, D code width, Q codebooks.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from huggingface_hub import PyTorchModelHubMixin
from torch import Tensor, nn

from vistok.layers.image_checks import check_finite, check_images, pad_to_multiple
from vistok.layers.preprocess import Preprocess
from vistok.protocols import Quantized
from vistok.rows import grid_coords
from vistok.tokens import TokenSpec, TokenTensor


class Reconstruction(NamedTuple):
    """What training needs: images [B, 3, H, W] unclamped, loss [] of the quantizer, stats by name."""

    images: Tensor
    loss: Tensor
    stats: dict[str, Tensor]


class GridVq(nn.Module, PyTorchModelHubMixin, library_name="vistok", license="apache-2.0"):
    """A method sets the five parts below, or overrides `features` and `pixels` where it has others.

    `quantize`: vectors [B, N, D] to `Quantized`, with `lookup` from ids to vectors.
    """

    cannot: frozenset[str] = frozenset({"budget"})
    black = -1.0

    encoder: nn.Module
    quant_conv: nn.Module
    quantize: Any
    post_quant_conv: nn.Module
    decoder: nn.Module

    def __init__(
        self, name: str, *, patch: int, dim: int, codebook_sizes: tuple[int, ...], preprocess: dict[str, Any] | None
    ) -> None:
        super().__init__()
        self.name, self.patch, self.dim, self.codebook_sizes = name, patch, dim, codebook_sizes
        self.preprocess = Preprocess(**(preprocess or {}))

    @property
    def spec(self) -> TokenSpec:
        """What all token-tensors of this tokenizer share; grid and image size come with each batch."""
        return TokenSpec(self.name, self.dim, self.codebook_sizes, patch=self.patch)

    def encode(self, images: Tensor, *, budget: int | Tensor | None = None) -> TokenTensor:
        """images [B, 3, H, W] in [0, 1] -> tokens in raster order: embeds [B, N, D], indices [B, N] or [B, N, Q].

        Sides that are no multiples of `patch` are mirrored below and to the right, and cropped by `decode`.
        Raises: ValueError naming the shape or range that is wrong, images whose features are not finite, or a budget:
        a grid has no shorter form.
        """
        if budget is not None:
            raise ValueError(f"{self.name}: expected no budget, a grid tokenizer makes h*w tokens; prune them instead")
        check_images(self.name, images)
        features = self._features(pad_to_multiple(images, self.patch))
        check_finite(self.name, features, f"features from {features.dtype}")
        quantized, grid = self._quantized(features)
        spec = TokenSpec(self.name, self.dim, self.codebook_sizes, grid, self.patch, tuple(images.shape[2:]))
        coords = grid_coords(*grid, images.shape[0], images.device)
        return TokenTensor(spec=spec, embeds=quantized.embeds, indices=quantized.indices, coords=coords)

    def decode(self, tokens: TokenTensor) -> Tensor:
        """Tokens of `encode` -> images [B, 3, H, W] in [0, 1], cropped to the encoded size.

        Raises: ValueError if tokens are missing from the grid; NotImplementedError without a decoder.
        """
        if "decode" in self.cannot:
            raise NotImplementedError(f"{self.name}: this model is an encoder alone; load one that has a decoder")
        spec = tokens.spec
        if len(spec.grid) != 2 or tokens.num_slots != spec.grid[0] * spec.grid[1]:
            raise ValueError(f"{self.name}: expected all tokens of a grid {spec.grid}, got N={tokens.num_slots}")
        embeds = tokens.embeds if tokens.embeds is not None else self.quantize.lookup(tokens.indices)
        images = self._decoded(embeds, (spec.grid[0], spec.grid[1]))
        height, width = spec.image_size or images.shape[2:]
        return images[:, :, :height, :width].clamp(0.0, 1.0)

    def forward(self, images: Tensor) -> Reconstruction:
        """images [B, 3, H, W] in [0, 1], sides multiples of `patch` -> what a training step needs."""
        quantized, grid = self._quantized(self._features(images))
        return Reconstruction(self._decoded(quantized.embeds, grid), quantized.loss, quantized.stats)

    def features(self, pixels: Tensor) -> Tensor:
        """pixels [B, 3, H, W] in [black, 1] -> vectors to quantize [B, D, h, w]."""
        features: Tensor = self.quant_conv(self.encoder(pixels))
        return features

    def pixels(self, embeds: Tensor) -> Tensor:
        """embeds [B, D, h, w] -> pixels [B, 3, H, W] around [black, 1], not clamped."""
        pixels: Tensor = self.decoder(self.post_quant_conv(embeds))
        return pixels

    @classmethod
    def rename_settings(cls, stored: Mapping[str, Any]) -> dict[str, Any]:
        """The config.json beside weights as settings: our own as it is, nothing of one that another library wrote.

        A method that finds its sizes in the latter reads them.
        """
        return {} if is_foreign(stored) else dict(stored)

    def _features(self, images: Tensor) -> Tensor:
        """images [B, 3, H, W] of any float dtype -> vectors [B, D, h, w] in the encoder's."""
        dtype = next(self.encoder.parameters(), images).dtype
        return self.features((images * (1 - self.black) + self.black).to(dtype))

    def _quantized(self, features: Tensor) -> tuple[Quantized, tuple[int, int]]:
        rows, cols = features.shape[2:]
        return self.quantize(features.flatten(2).transpose(1, 2)), (rows, cols)

    def _decoded(self, embeds: Tensor, grid: tuple[int, int]) -> Tensor:
        embeds = embeds.to(next(self.decoder.parameters()).dtype)
        pixels = self.pixels(embeds.transpose(1, 2).unflatten(2, grid))
        return (pixels - self.black) / (1 - self.black)


def is_foreign(stored: Mapping[str, Any]) -> bool:
    """Whether a config.json was written by transformers or diffusers."""
    return not stored.keys().isdisjoint(("architectures", "model_type", "_class_name"))
