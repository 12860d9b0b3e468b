"""One adapter for the image autoencoders of diffusers (Kingma & Welling, arXiv:1312.6114, and what followed).

images in [0, 1] -> pad below and to the right to a multiple of the stride -> the network's own range -> its encoder ->
the latent (mean or draw) -> (z - mean) / std per channel -> patches of `patch` x `patch` latents -> tokens, and back,
cropped. Tokens always hold normalized latents, and the network's own always come as `RawLatent`: nobody else scales.
What is odd about a class stands in `FAMILIES`. B images, h x w latents of C channels, N tokens of D = C patch^2.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, Self

import torch
from huggingface_hub import PyTorchModelHubMixin
from torch import Tensor, nn

from vistok.config import unknown
from vistok.layers.gaussian import Gaussian
from vistok.layers.image_checks import check_finite, check_images, pad_to_multiple
from vistok.layers.normalizer import LatentNormalizer, NormalizedLatent, RawLatent
from vistok.layers.preprocess import Preprocess
from vistok.registry import register
from vistok.rows import grid_coords
from vistok.tokenizers._diffusers_families import FAMILIES, build, stride
from vistok.tokens import TokenSpec, TokenTensor


@register
class DiffusersVae(nn.Module, PyTorchModelHubMixin, library_name="vistok", license="apache-2.0"):
    """Continuous tokens of any autoencoder in `FAMILIES`, from a folder that diffusers saved or with random weights.

    In float16 a network whose config says `force_upcast` stays in the dtype it has, because its activations overflow:
    AutoencoderKL keeps float32 by default, unless its config says `force_upcast: false`.
    """

    cannot: frozenset[str] = frozenset({"budget", "backward", "fullgraph"})
    weight_files = ("model.safetensors", "diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")

    def __init__(
        self,
        *,
        vae: dict[str, Any],
        patch: int = 1,
        scale: float = 1.0,
        frozen: bool = True,
        preprocess: dict[str, Any] | None = None,
    ) -> None:
        """vae: {"method": a class of diffusers, its config}. patch: side of the squares of latents that make a token.

        scale: times what the config's statistics give, such as the sigma of the data that a scheduler works with.
        frozen: no gradients into the network. Raises: ValueError for a class that is not in the table or that its
        library cannot build, or numbers below their least.
        """
        super().__init__()
        config = dict(vae)
        kind = config.pop("method", None)
        if kind not in FAMILIES:
            raise ValueError("diffusers_vae: " + unknown("supported class", str(kind), FAMILIES))
        if patch < 1 or not scale > 0:
            raise ValueError(f"diffusers_vae: expected patch >= 1 and scale > 0, got patch={patch} and scale={scale}")
        self.name = "diffusers_vae"
        self.kind, self.family = str(kind), FAMILIES[str(kind)]
        self.cannot = self.cannot | self.family.cannot
        self.net = build(self.kind, config).requires_grad_(not frozen).eval()
        self.patch, self.scale = patch, scale
        self.preprocess = Preprocess(**(preprocess or {}))
        settings = self.net.config
        self.normalizer = LatentNormalizer(settings[self.family.channels] * self.family.fold**2)
        self.dim = len(self.normalizer.mean) * patch**2
        self.stride = stride(self.family, settings)
        self.multiple = self.stride * self.family.fold * patch
        if self.family.square:
            self.net.reshape_to_2d = True
            side = settings["encoder_input_size"] // settings["encoder_patch_size"]
            if side % patch:
                raise ValueError(f"diffusers_vae: expected patch to divide {side} latents a side, got {patch}")
        statistics = self.family.statistics(settings)
        self._set_statistics(*(statistics or (0.0, 1.0)))

    @property
    def spec(self) -> TokenSpec:
        """What all token-tensors of this tokenizer share; grid and image size come with each batch."""
        return TokenSpec(self.name, self.dim, patch=self.multiple)

    @property
    def dtype(self) -> torch.dtype:
        """What the network computes in."""
        dtype: torch.dtype = next(self.net.parameters()).dtype
        return dtype

    def encode(
        self,
        images: Tensor,
        *,
        budget: int | Tensor | None = None,
        sample: bool = False,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        tile: int | None = None,
    ) -> TokenTensor:
        """images [B, 3, H, W] in [0, 1] -> normalized latents in raster order, embeds [B, N, D] float32.

        sample, generator, tile: as `latents`. Raises: ValueError naming the shape or range that is wrong, an image
        whose latents are not finite, or a budget: a grid has no shorter form.
        """
        if budget is not None:
            raise ValueError(f"{self.name}: expected no budget, a grid tokenizer makes h*w tokens; prune them instead")
        check_images(self.name, images)
        raw = self.latents(images, sample=sample, generator=generator, tile=tile)
        return self.tokens(self.normalizer.normalize(raw), (images.shape[2], images.shape[3]), tile=tile or 0)

    def decode(self, tokens: TokenTensor) -> Tensor:
        """Tokens of `encode` -> images [B, 3, H, W] float32 in [0, 1], cropped to the encoded size.

        Tiled if `tokens.spec.tile` is set. Raises: TypeError for latents, which `pixels` takes if they are raw;
        ValueError if tokens are missing from the grid.
        """
        if not isinstance(tokens, TokenTensor):
            raise TypeError(
                f"{self.name}.decode: expected a TokenTensor, got {type(tokens).__name__}; pass normalized latents "
                "through `tokens`, raw ones to `pixels`"
            )
        spec = tokens.spec
        if len(spec.grid) != 2 or tokens.num_slots != spec.grid[0] * spec.grid[1] or tokens.embeds is None:
            raise ValueError(f"{self.name}: expected embeds of all tokens of a grid {spec.grid}, got {tokens}")
        cells = tokens.embeds.reshape(len(tokens), *spec.grid, self.dim)
        latent = NormalizedLatent(_unfold(cells, self.patch))
        return self.pixels(self.normalizer.denormalize(latent), spec.image_size or None, tile=spec.tile or None)

    def latents(
        self,
        images: Tensor,
        *,
        sample: bool = False,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        tile: int | None = None,
    ) -> RawLatent:
        """images [B, 3, H, W] in [0, 1] -> the network's own latents [B, h, w, C] float32: their mean, or a draw.

        generator: one for each image, or one that draws for image after image, so that no image's noise depends on
        how many follow. tile: side in pixels of overlapping tiles, for large images in bounded memory; other latents
        than those of the whole image, because attention and group statistics see one tile.
        Raises: ValueError for a draw where the class has no distribution, or a tile that does not fit.
        """
        out = self._encoded(images, tile)
        if not sample:
            return RawLatent(out.mean if isinstance(out, Gaussian) else out)
        if not isinstance(out, Gaussian):
            raise ValueError(f"{self.name}: expected sample=False, {self.kind} has no distribution to draw from")
        if not isinstance(generator, Sequence):
            generator = [generator or torch.default_generator] * len(out.mean)
        return RawLatent(out.sample(generator))

    def posterior(self, images: Tensor, *, tile: int | None = None) -> Gaussian:
        """images [B, 3, H, W] in [0, 1] -> mean and log-variance of raw latents [B, h, w, C], to store and draw later.

        Raises: ValueError if the class has no distribution.
        """
        out = self._encoded(images, tile)
        if not isinstance(out, Gaussian):
            raise ValueError(f"{self.name}: expected a variational autoencoder, {self.kind} has no distribution")
        return out

    def tokens(self, latent: NormalizedLatent, image_size: tuple[int, int], tile: int = 0) -> TokenTensor:
        """Normalized latents [B, h, w, C] -> tokens. Raises: TypeError for raw ones; ValueError for another width."""
        if not isinstance(latent, NormalizedLatent):
            raise TypeError(
                f"{self.name}.tokens: expected NormalizedLatent, got {type(latent).__name__}; use model.normalizer"
            )
        cells = _fold(latent.values, self.patch)
        batch, rows, cols, width = cells.shape
        if width != self.dim:
            raise ValueError(
                f"{self.name}.tokens: expected {self.dim // self.patch**2} channels, got {list(latent.values.shape)}"
            )
        spec = TokenSpec(self.name, self.dim, (), (rows, cols), self.multiple, image_size, tile=tile)
        return TokenTensor(spec=spec, embeds=cells.flatten(1, 2), coords=grid_coords(rows, cols, batch, cells.device))

    def pixels(
        self, latent: RawLatent, image_size: tuple[int, ...] | None = None, *, tile: int | None = None
    ) -> Tensor:
        """Raw latents [B, h, w, C] -> images [B, 3, H, W] float32 in [0, 1], cropped to `image_size`.

        A class that resizes what it encodes has its images resized back. Raises: TypeError for normalized latents;
        ValueError naming an image that is not finite.
        """
        if not isinstance(latent, RawLatent):
            raise TypeError(
                f"{self.name}.pixels: expected RawLatent, got {type(latent).__name__}; use model.normalizer"
            )
        z = _unfold(latent.values, self.family.fold).permute(0, 3, 1, 2).to(self.dtype)
        sides = [self.stride * side for side in z.shape[2:]]
        with self._computing(tile, sides):
            out = self.net.decode(z[:, :, None] if self.family.frames else z, **self.family.decode).sample
        images: Tensor = (out[:, :, 0] if self.family.frames else out).float()
        check_finite(self.name, images, f"images from {self.dtype}")
        images = ((images - self.family.low) / (1 - self.family.low)).clamp(0.0, 1.0)
        if image_size is None:
            return images
        height, width = image_size
        if self.family.square:
            resized = nn.functional.interpolate(images, (height, width), mode="bicubic", antialias=True)
            return resized.clamp(0.0, 1.0)
        return images[:, :, :height, :width]

    def rename_keys(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Names of diffusers to ours, and the normalizer's statistics, which are in their config or batch norm."""
        if any(name.startswith("net.") for name in tensors):
            return dict(tensors)
        if self.kind == "AutoencoderKLFlux2" and {"bn.running_mean", "bn.running_var"} <= tensors.keys():
            variance = tensors["bn.running_var"].float() + self.net.config["batch_norm_eps"]
            self._set_statistics(tensors["bn.running_mean"].float(), variance.sqrt())
        ours = {f"normalizer.{name}": value for name, value in self.normalizer.state_dict().items()}
        theirs = dict(tensors)
        # Files of Stable Diffusion 1 and 2 call to_q, to_k, to_v and to_out query, key, value and proj_attn.
        self.net._fix_state_dict_keys_on_load(theirs)
        return {f"net.{name}": value for name, value in theirs.items()} | ours

    @classmethod
    def rename_settings(cls, stored: dict[str, Any]) -> dict[str, Any]:
        """diffusers' config to our settings; ours as they are."""
        if "_class_name" not in stored:
            return stored
        config = {name: value for name, value in stored.items() if not name.startswith("_")}
        return {"vae": {"method": stored["_class_name"], **config}}

    def train(self, mode: bool = True) -> Self:
        """The network stays in evaluation: batch norms here store statistics, and noise is for decoders' training."""
        super().train(mode)
        self.net.eval()
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], *args: Any, **kwargs: Any) -> Self:
        if self.net.config.get("force_upcast"):
            probe = torch.zeros(0, dtype=self.dtype, device=self.normalizer.mean.device)
            if fn(probe).dtype == torch.float16:
                # A cast to float16 and back would cost the weights their last bits: they move only.
                device = fn(probe).device
                return super()._apply(lambda value: value.to(device))  # type: ignore[no-untyped-call, no-any-return]
        return super()._apply(fn, *args, **kwargs)  # type: ignore[no-untyped-call, no-any-return]

    def _set_statistics(self, mean: Any, std: Any) -> None:
        buffer = self.normalizer.mean
        if buffer.is_meta:  # only sizes are asked for
            return
        mean, std = (torch.as_tensor(value, dtype=torch.float32).expand(buffer.shape) for value in (mean, std))
        self.normalizer.set_statistics(mean, std / self.scale)

    def _encoded(self, images: Tensor, tile: int | None) -> Gaussian | Tensor:
        """The posterior of raw latents [B, h, w, C], or these themselves where there is none."""
        if self.kind == "AutoencoderTiny" and self.net.encoder.gradient_checkpointing:
            raise ValueError(
                f"{self.name}: AutoencoderTiny reads another range of pixels with gradient checkpointing; "
                "call net.disable_gradient_checkpointing()"
            )
        padded = images if self.family.square else pad_to_multiple(images, self.multiple)
        x = (padded * (1 - self.family.low) + self.family.low).to(self.dtype)
        with self._computing(tile, x.shape[2:]):
            encoded = getattr(self.net.encode(x[:, :, None] if self.family.frames else x), self.family.latent)
        if self.family.latent == "latent_dist" and hasattr(encoded, "logvar"):
            return Gaussian(*(self._cells(part, padded) for part in (encoded.mean, encoded.logvar)))
        return self._cells(encoded.mode() if self.family.latent == "latent_dist" else encoded, padded)

    def _cells(self, values: Tensor, images: Tensor) -> Tensor:
        cells = _fold((values[:, :, 0] if self.family.frames else values).permute(0, 2, 3, 1).float(), self.family.fold)
        expected = [side // (self.stride * self.family.fold) for side in images.shape[2:]]
        if not self.family.square and list(cells.shape[1:3]) != expected:
            raise ValueError(
                f"{self.name}: expected {expected[0]}x{expected[1]} latents from {self.kind}, got "
                f"{cells.shape[1]}x{cells.shape[2]}; its config does not tell its stride"
            )
        check_finite(self.name, cells, f"latents from {self.dtype}")
        return cells

    @contextmanager
    def _computing(self, tile: int | None, sides: Sequence[int]) -> Iterator[None]:
        """Tiling on for this call only and above the tile's size, autocast off where half precision overflows."""
        if tile is not None:
            self._set_tile(tile)
            if max(sides) <= tile:
                self.net.disable_tiling()
        try:
            exact = self.net.config.get("force_upcast") and self.dtype == torch.float32
            with torch.autocast(self.normalizer.mean.device.type, enabled=False) if exact else nullcontext():
                yield
        finally:
            if tile is not None:
                self.net.disable_tiling()

    def _set_tile(self, tile: int) -> None:
        if self.family.tiles is None:
            raise ValueError(f"{self.name}: expected tile=None, {self.kind} has no tiling of images")
        shape = self.net.config.get("latent_channels"), self.net.config.get("out_channels")
        if self.kind == "AutoencoderTiny" and shape != (4, 3):
            raise ValueError(f"{self.name}: expected tile=None, AutoencoderTiny tiles 4 channels only, not {shape[0]}")
        unit = self.stride * self.family.fold
        if tile < 8 * unit or tile % (4 * unit):
            raise ValueError(
                f"{self.name}: expected tile to be a multiple of {4 * unit} pixels, {8 * unit} or more, got {tile}"
            )
        if self.kind == "AutoencoderTiny":
            self.net.spatial_scale_factor = self.stride  # it takes 2 to the number of image channels
        # A quarter of a tile overlaps the next one.
        if self.family.tiles == "side":
            self.net.tile_overlap_factor = 0.25
            self.net.tile_sample_min_size, self.net.tile_latent_min_size = tile, tile // self.stride
            self.net.enable_tiling()
        else:
            self.net.enable_tiling(tile, tile, tile * 3 // 4, tile * 3 // 4)


def _fold(values: Tensor, side: int) -> Tensor:
    """[B, h, w, C] -> [B, h/side, w/side, C side^2]: channel first, then row and column of the patch."""
    return values if side == 1 else nn.functional.pixel_unshuffle(values.permute(0, 3, 1, 2), side).permute(0, 2, 3, 1)


def _unfold(values: Tensor, side: int) -> Tensor:
    """The inverse of `_fold`."""
    return values if side == 1 else nn.functional.pixel_shuffle(values.permute(0, 3, 1, 2), side).permute(0, 2, 3, 1)
