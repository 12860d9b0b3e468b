"""MingTok: Ming-UniVision, Joint Image Understanding and Generation with a Unified Continuous Tokenizer (2510.06590).

image -> low-level encoder -> compact latents (what a generator predicts) -> causal semantic decoder -> semantic tokens
(what a language model reads) -> pixel decoder -> image. No draw, no codebook: z = (raw - mean) / scaling_factor.
B images, N = gh*gw tokens in raster order, C latent channels, W width of semantic tokens.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from huggingface_hub import PyTorchModelHubMixin
from torch import Tensor, nn

from vistok.config import check_settings
from vistok.layers.image_checks import check_images, pad_to_multiple
from vistok.layers.mingtok_stages import LowLevelEncoder, PixelDecoder, SemanticDecoder, init_stages, spread
from vistok.layers.normalizer import NormalizedLatent, RawLatent
from vistok.layers.patchify import unpatchify
from vistok.layers.preprocess import Preprocess
from vistok.registry import register
from vistok.rows import grid_coords
from vistok.tokens import TokenSpec, TokenTensor

_SEMANTIC = ".semantic"
_VISION = "vision."
_TEACHER = "target_backbone"
_SETTINGS = ("low_level_encoder", "semantic_decoder", "pixel_decoder", "scaling_factor", "mean", "preprocess")


class Latents(NamedTuple):
    """Normalized latents: patches [B, N, C] in raster order, cls [B, 1, C], grid (gh, gw)."""

    patches: Tensor
    cls: Tensor
    grid: tuple[int, int]


class SemanticFeatures(NamedTuple):
    """patches [B, N, W]; cls [B, W], None if no class latent was given."""

    patches: Tensor
    cls: Tensor | None


class Reconstruction(NamedTuple):
    """Raw latents [B, N + 1, C] and semantic tokens [B, N + 1, W], the class last; images [B, 3, H, W] unclamped."""

    latents: Tensor
    semantic: Tensor
    images: Tensor


@register
class MingTok(nn.Module, PyTorchModelHubMixin, library_name="vistok", license="apache-2.0"):
    """Three transformers, settings and weights as the authors publish them; heads are 64 channels wide."""

    cannot: frozenset[str] = frozenset({"budget"})

    def __init__(
        self,
        *,
        low_level_encoder: dict[str, Any],
        semantic_decoder: dict[str, Any],
        pixel_decoder: dict[str, Any],
        scaling_factor: float = 1.0,
        mean: float = 0.0,
        preprocess: dict[str, Any] | None = None,
    ) -> None:
        """The settings of the authors' config, for each stage its own.

        scaling_factor, mean: of raw latents, the same for all channels; raw = z * scaling_factor + mean.
        Raises: TypeError for a setting that a stage does not have; ValueError for sizes that do not fit each other.
        """
        super().__init__()
        if not scaling_factor > 0:
            raise ValueError(f"mingtok: expected scaling_factor > 0, it divides latents, got {scaling_factor}")
        self.name = "mingtok"
        self.scaling_factor, self.mean = float(scaling_factor), float(mean)
        self.preprocess = Preprocess(**(preprocess or {}))
        # The authors' code reads a stochastic depth and never applies it.
        encoder = {name: value for name, value in low_level_encoder.items() if name != "drop_path_rate"}
        decoder = dict(pixel_decoder)
        self.loss_type = str(decoder.pop("loss_type", "L1-plain"))
        self.norm_pix_loss = bool(decoder.pop("norm_pix_loss", False))
        self.low_level_encoder: LowLevelEncoder = _stage("low_level_encoder", LowLevelEncoder, encoder)
        self.semantic_decoder: SemanticDecoder = _stage("semantic_decoder", SemanticDecoder, semantic_decoder)
        self.pixel_decoder: PixelDecoder = _stage("pixel_decoder", PixelDecoder, decoder)
        self.patch: int = encoder["patch_size"]
        self.dim: int = encoder["out_dim"]
        self.semantic_dim: int = semantic_decoder["embed_dim"]
        pixels = self.pixel_decoder
        if (self.patch, self.dim) != (semantic_decoder["patch_size"], semantic_decoder["in_dim"]):
            raise ValueError(
                f"mingtok: expected the semantic decoder to take what the encoder gives, patch_size={self.patch} and "
                f"in_dim={self.dim}, got {semantic_decoder['patch_size']} and {semantic_decoder['in_dim']}"
            )
        if self.patch % pixels.patch_size:
            raise ValueError(
                f"mingtok: expected pixel_decoder.patch_size to divide patch_size={self.patch}, got {pixels.patch_size}"
            )
        self.spread_factor = self.patch // pixels.patch_size
        self.sem_to_pix = nn.Linear(self.semantic_dim, self.spread_factor**2 * pixels.embed_dim)
        init_stages(self)

    @property
    def spec(self) -> TokenSpec:
        """What all latents of this tokenizer share; grid and image size come with each batch."""
        return TokenSpec(self.name, self.dim, patch=self.patch)

    def encode(self, images: Tensor, *, budget: int | Tensor | None = None) -> TokenTensor:
        """images [B, 3, H, W] in [0, 1] -> normalized latents, embeds [B, N, C] in raster order.

        Sides that are no multiples of a patch are mirrored at the right and lower edge. Raises: ValueError naming the
        shape or range that is wrong, or a budget: a grid has no shorter form.
        """
        if budget is not None:
            raise ValueError(
                f"{self.name}: expected no budget, later tokens depend on all before; prune the semantic ones"
            )
        latents = self.latents(images)
        spec = replace(self.spec, grid=latents.grid, image_size=(images.shape[2], images.shape[3]))
        coords = grid_coords(*latents.grid, batch=images.shape[0], device=images.device)
        return TokenTensor(spec=spec, embeds=latents.patches, coords=coords)

    def latents(self, images: Tensor) -> Latents:
        """images [B, 3, H, W] in [0, 1] -> normalized latents, the class too. Raises: ValueError as `encode`."""
        check_images(self.name, images)
        padded = pad_to_multiple(images, self.patch)
        raw = self.low_level_encoder(padded.to(self.sem_to_pix.weight.dtype) * 2 - 1)
        z = self.normalize(RawLatent(raw)).values
        return Latents(z[:, :-1], z[:, -1:], self.low_level_encoder.grid(padded))

    def semantic(self, tokens: TokenTensor) -> TokenTensor:
        """Latents of `encode`, all N of a grid -> semantic tokens, embeds [B, N, W].

        Raises: ValueError if tokens are missing or were reordered: all later ones would change.
        """
        self._check_grid(tokens)
        assert tokens.embeds is not None
        embeds = self.semantic_features(tokens.embeds).patches
        return replace(tokens, spec=self.semantic_spec(tokens.spec), embeds=embeds)

    def semantic_spec(self, spec: TokenSpec) -> TokenSpec:
        """The spec of the semantic tokens that belong to latents of a spec."""
        return replace(spec, name=spec.name + _SEMANTIC, dim=self.semantic_dim)

    def semantic_features(self, z: Tensor, *, has_cls: bool = False) -> SemanticFeatures:
        """Normalized latents z [B, N, C] -> features; has_cls: z is [B, N + 1, C] and ends with the class latent.

        Raises: ValueError unless z has C channels.
        """
        features = self.semantic_decoder(self._raw(z)).float()
        return SemanticFeatures(features[:, :-1], features[:, -1]) if has_cls else SemanticFeatures(features, None)

    def stream(self) -> "SemanticStream":
        """Semantic tokens one by one, while a generator makes the latents."""
        return SemanticStream(self)

    def decode(self, tokens: TokenTensor) -> Tensor:
        """Latents of `encode` or tokens of `semantic` -> images [B, 3, H, W] in [0, 1], cropped to the encoded size.

        Raises: ValueError if tokens are missing from the grid, shortened ones too, or were reordered.
        """
        if not tokens.spec.name.endswith(_SEMANTIC):
            tokens = self.semantic(tokens)
        self._check_grid(tokens)
        assert tokens.embeds is not None
        grid = (tokens.spec.grid[0], tokens.spec.grid[1])
        images = unpatchify(self.pixel_patches(tokens.embeds, grid).float(), grid_of_pixels(grid, self.spread_factor))
        height, width = tokens.spec.image_size or images.shape[2:]
        return (images[:, :, :height, :width].clamp(-1.0, 1.0) + 1) / 2

    def pixel_patches(self, semantic: Tensor, grid: tuple[int, int]) -> Tensor:
        """semantic [B, N, W] of patches -> pixels in [-1, 1], not clamped, [B, f^2 N, 3 p^2]; f: `spread_factor`."""
        spread_out = self.sem_to_pix(semantic.to(self.sem_to_pix.weight.dtype))
        patches: Tensor = self.pixel_decoder(spread(spread_out, grid, self.spread_factor))
        return patches

    def forward(self, images: Tensor) -> Reconstruction:
        """images [B, 3, H, W] in [0, 1], sides multiples of a patch -> all three stages, nothing masked."""
        pixels = images * 2 - 1
        raw = self.low_level_encoder(pixels)
        semantic = self.semantic_decoder(raw)
        grid = self.low_level_encoder.grid(pixels)
        patches = self.pixel_patches(semantic[:, :-1], grid)
        return Reconstruction(raw, semantic, (unpatchify(patches, grid_of_pixels(grid, self.spread_factor)) + 1) / 2)

    def normalize(self, latent: RawLatent) -> NormalizedLatent:
        """(raw - mean) / scaling_factor in float32."""
        return NormalizedLatent((latent.values.float() - self.mean) / self.scaling_factor)

    def denormalize(self, latent: NormalizedLatent) -> RawLatent:
        """z * scaling_factor + mean in float32."""
        return RawLatent(latent.values.float() * self.scaling_factor + self.mean)

    @staticmethod
    def rename_settings(stored: Mapping[str, Any]) -> dict[str, Any]:
        """The tokenizer's own settings out of a config.json; that of a whole Ming-UniVision has none of them."""
        return {name: value for name, value in stored.items() if name in _SETTINGS}

    def rename_keys(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tokenizer's own tensors, out of a whole Ming-UniVision file too; teachers of its training stay out."""
        whole = any(name.startswith(_VISION) for name in tensors)
        own = {name.removeprefix(_VISION): value for name, value in tensors.items() if not whole or _in_vision(name)}
        return {name: value for name, value in own.items() if not name.startswith(_TEACHER)}

    def _raw(self, z: Tensor) -> Tensor:
        if z.ndim != 3 or z.shape[-1] != self.dim:
            raise ValueError(f"{self.name}: expected normalized latents [B, N, {self.dim}], got {list(z.shape)}")
        return self.denormalize(NormalizedLatent(z)).values.to(self.sem_to_pix.weight.dtype)

    def _check_grid(self, tokens: TokenTensor) -> None:
        grid = tokens.spec.grid
        if tokens.embeds is None or len(grid) != 2 or tokens.num_slots != grid[0] * grid[1]:
            raise ValueError(f"{self.name}: expected embeds of all tokens of a grid {grid}, got {tokens}")
        order = torch.arange(tokens.num_slots, device=tokens.embeds.device)
        short = tokens.lengths is not None and bool((tokens.lengths < tokens.num_slots).any())
        if short or (tokens.source is not None and bool((tokens.source != order).any())):
            raise ValueError(
                f"{self.name}: expected all tokens of a grid, in the order of encode, got some that were pruned or "
                f"moved: {tokens}; prune the semantic ones, for a language model alone"
            )


class SemanticStream:
    """A pass of the semantic decoder that keeps its keys and values: equal to the full causal pass, for inference."""

    def __init__(self, tokenizer: MingTok) -> None:
        self._tokenizer = tokenizer
        self._cache = tokenizer.semantic_decoder.new_cache()

    @property
    def length(self) -> int:
        """Latents taken so far."""
        return self._cache.length

    @torch.inference_mode(False)  # keys and values made in it could not be written to outside
    @torch.no_grad()
    def step(self, z: Tensor) -> Tensor:
        """The next normalized latents [B, k, C], one or many at once -> their semantic tokens [B, k, W].

        Raises: ValueError unless z has C channels and the batch of the steps before.
        """
        features: Tensor = self._tokenizer.semantic_decoder(self._tokenizer._raw(z), self._cache)
        return features.float()


def grid_of_pixels(grid: tuple[int, int], factor: int) -> tuple[int, int]:
    """Rows and columns of pixel patches, `factor` for each token of a grid."""
    return grid[0] * factor, grid[1] * factor


def _stage(name: str, build: Callable[..., Any], settings: Mapping[str, Any]) -> Any:
    check_settings(f"mingtok {name}", build, settings)
    try:
        return build(**settings)
    except TypeError as error:
        raise TypeError(f"mingtok {name}: {error}; given were {sorted(settings)}") from error


def _in_vision(name: str) -> bool:
    return name.startswith(_VISION)
