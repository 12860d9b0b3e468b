"""KARL: Single-pass Adaptive Image Tokenization for Minimum Program Search (arXiv:2507.07995).

[eps | N grid tokens | T latent slots] -> encoder -> per slot a latent z and a halting probability p; slots with p > .75
are dropped, the kept ones (any subset, with their slots) -> decoder with N mask tokens -> base tokenizer -> pixels.
The number of kept tokens estimates the length of the shortest description within a mean absolute error eps.

Differs from the authors' code: masks are per image (theirs mix the images of a batch), eps and budget may be as well,
and halted tokens are dropped before the decoder, which gives the same as masking them.
B images, N = h*w grid tokens, T slots, D latent width. Keys of the state dict are the authors'.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from huggingface_hub import PyTorchModelHubMixin
from torch import Tensor, nn

from vistok.layers.base_tokenizers import make_base
from vistok.layers.codebook import Codebook
from vistok.layers.image_checks import check_images, pad_to_multiple
from vistok.layers.preprocess import Preprocess
from vistok.layers.transformer import Block, init_like_vit, run_blocks
from vistok.registry import register
from vistok.tokenizers._allocation import Target, mean_absolute_error, verified
from vistok.tokens import TokenSpec, TokenTensor

EPSILONS = (
    0.005, 0.01, 0.02, 0.03, 0.04, 0.05, 0.06, 0.07, 0.09, 0.1, 0.12, 0.14, 0.16, 0.18, 0.2, 0.24, 0.28, 0.32, 0.38,
)  # fmt: skip
_HALTING_WIDTH = 512


class Latents(NamedTuple):
    """What the encoder makes of T slots: outputs [B, T, W], values [B, T, D] before quantization, halt_logits [B, T].

    target: what the base tokenizer says about the N grid tokens; grid: (h, w).
    """

    outputs: Tensor
    values: Tensor
    halt_logits: Tensor
    target: Tensor
    grid: tuple[int, int]


class Run(NamedTuple):
    """One pass through encoder and decoder, for training.

    decoded [B, N, out] prediction for the base tokenizer, target what it should be, halt_logits [B, T], keep [B, T]
    what the decoder saw, embeds [B, T, D], indices [B, T] or None, loss [] of the codebook.
    """

    decoded: Tensor
    target: Tensor
    grid: tuple[int, int]
    halt_logits: Tensor
    keep: Tensor
    embeds: Tensor
    indices: Tensor | None
    loss: Tensor


class Reconstruction(NamedTuple):
    """images [B, 3, H, W] unclamped, decoded [B, N, out], halt_logits [B, T], loss [] of the codebook."""

    images: Tensor
    decoded: Tensor
    halt_logits: Tensor
    loss: Tensor


class _Trunk(nn.Module):
    def __init__(self, width: int, layers: int, heads: int) -> None:
        super().__init__()
        self.transformer = nn.ModuleList(Block(width, heads) for _ in range(layers))


class _Decoder(_Trunk):
    def __init__(self, width: int, layers: int, heads: int, out: int) -> None:
        super().__init__(width, layers, heads)
        self.ln_pre = nn.LayerNorm(width)
        self.ln_post = nn.LayerNorm(width)
        self.ffn = nn.Sequential(nn.Linear(width, 2 * width), nn.Tanh(), nn.Linear(2 * width, out))


@register
class Karl(nn.Module, PyTorchModelHubMixin, library_name="vistok", license="apache-2.0"):
    """As few 1-D tokens per image as it takes to meet a mean absolute error `eps`, chosen in one pass."""

    cannot: frozenset[str] = frozenset()

    def __init__(
        self,
        *,
        base_tokenizer: dict[str, Any] | None = None,
        encoder_width: int = 1024,
        encoder_layers: int = 8,
        encoder_heads: int = 8,
        decoder_width: int = 1024,
        decoder_layers: int = 8,
        decoder_heads: int = 8,
        codebook_size: int | None = 4096,
        latent_dim: int = 12,
        commitment: float = 0.25,
        patch: int = 16,
        max_grid: int = 64,
        max_latents: int = 512,
        budget: int = 256,
        epsilons: Sequence[float] = EPSILONS,
        eps: float = 0.05,
        halt_threshold: float = 0.75,
        trained_grid: Sequence[int] = (16, 16),
        preprocess: dict[str, Any] | None = None,
        calibration: Mapping[str, float] | None = None,
    ) -> None:
        """base_tokenizer: {"method": "vqgan", "vae" or "pixels", its sizes}. codebook_size: None = continuous tokens.

        budget, eps: T and error of `encode` without any. epsilons: errors the model is conditioned on, ascending.
        max_grid: side of the position tables, max_latents: slots there are. trained_grid: (h, w) of the training
        images; other grids work and are untrained. calibration: as `calibrate` of vistok.metrics.complexity sets it.
        Raises: ValueError for sizes that do not fit each other.
        """
        super().__init__()
        if list(epsilons) != sorted(set(epsilons)) or not epsilons:
            raise ValueError(f"karl: expected epsilons ascending, each once, got {list(epsilons)}")
        if not 0 < budget <= max_latents:
            raise ValueError(f"karl: expected budget in 1..{max_latents} (max_latents), got {budget}")
        self.name = "karl"
        self.patch, self.dim, self.budget, self.eps = patch, latent_dim, budget, eps
        self.epsilons, self.trained_grid = tuple(epsilons), tuple(trained_grid)
        self.halt_threshold = halt_threshold
        self.calibration = dict(calibration or {})
        self.preprocess = Preprocess(**(preprocess or {}))
        self.base_tokenizer = make_base(**{"method": "vqgan", **(base_tokenizer or {}), "patch": patch})
        joined = encoder_width - self.base_tokenizer.channels
        if joined < 1:
            raise ValueError(
                f"karl: expected encoder_width > {self.base_tokenizer.channels}, the base's channels, got "
                f"{encoder_width}"
            )
        self.patch_embed = nn.Conv2d(3, joined, patch, stride=patch)
        self.encoder_positional_embedding = _random(encoder_width, encoder_width, max_grid, max_grid)
        self.rec_loss_embeddings = nn.Parameter(torch.tensor(self.epsilons)[:, None].repeat(1, encoder_width))
        self.latent_tokens = _random(encoder_width, max_latents, encoder_width)
        self.encoder_ln_pre = nn.LayerNorm(encoder_width)
        self.encoder = _Trunk(encoder_width, encoder_layers, encoder_heads)
        self.encoder_ln_post = nn.LayerNorm(encoder_width)
        self.encoder_ln_post_halt = nn.LayerNorm(encoder_width)
        self.pre_quantizer_mlp = nn.Linear(encoder_width, latent_dim)
        self.halting_mlp = nn.Sequential(
            nn.Linear(encoder_width, _HALTING_WIDTH), nn.Tanh(), nn.Linear(_HALTING_WIDTH, 1)
        )
        self.quantize = None if codebook_size is None else Codebook(codebook_size, latent_dim, commitment=commitment)
        self.decoder_embed = nn.Linear(latent_dim, decoder_width)
        self.decoder_latent_tokens_timestep_embed = _random(encoder_width, max_latents, decoder_width)
        self.decoder_mask_token = _random(encoder_width, 1, 1, decoder_width)
        self.decoder_positional_embedding = _random(encoder_width, decoder_width, max_grid, max_grid)
        self.decoder = _Decoder(decoder_width, decoder_layers, decoder_heads, self.base_tokenizer.out)
        for part in (self.patch_embed, self.encoder, self.decoder, self.pre_quantizer_mlp, self.halting_mlp):
            init_like_vit(part)
        init_like_vit(self.decoder_embed)

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """Entries of the codebook, () for continuous tokens."""
        return () if self.quantize is None else (self.quantize.embedding.num_embeddings,)

    @property
    def spec(self) -> TokenSpec:
        """What all token-tensors of this tokenizer share; grid and image size come with each batch."""
        return TokenSpec(self.name, self.dim, self.codebook_sizes, patch=self.patch, order="1d")

    @property
    def max_latents(self) -> int:
        """Slots there are, the largest budget."""
        return self.latent_tokens.shape[0]

    def encode(
        self,
        images: Tensor,
        *,
        budget: int | Tensor | None = None,
        eps: float | Tensor | None = None,
        halting: bool = True,
        verify: bool = False,
        calibrated: bool = False,
        target: Target = mean_absolute_error,
        sample: bool = False,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
    ) -> TokenTensor:
        """images [B, 3, H, W] in [0, 1] -> the kept tokens of each image, `source` their slots, `scores` their p(keep).

        budget: slots T, for all or [B] int64 for each image. eps: mean absolute error to meet, for all or [B]; the
        smallest of `epsilons` that is no smaller is used. halting=False: all T slots, for the smallest error.
        verify: measure the outcome and spend more on the images that miss their eps by `target`. calibrated: ask for
        the error whose measured bound is eps. sample: draw the latents of a VAE base with `generator`, else its mean.
        Raises: ValueError naming what is out of range.
        """
        check_images(self.name, images)
        if verify:
            if not halting or calibrated or sample:
                raise ValueError(f"{self.name}: expected verify=True without halting=False, calibrated or sample")
            return verified(self, images, eps=self.eps if eps is None else eps, budget=budget, target=target).tokens
        padded = pad_to_multiple(images, self.patch)
        slots, valid = self._slots(budget, images)
        asked = (self.eps if halting else 0.0) if eps is None else eps
        if calibrated:
            asked = self._calibrated(asked)
        noise = self.noise(padded, generator) if sample else None
        latents = self.latents(padded, slots, self.bins(asked, images), valid=valid, noise=noise)
        embeds, indices = latents.values, None
        if self.quantize is not None:
            quantized = self.quantize(latents.values)
            embeds, indices = quantized.embeds, quantized.indices
        keep = self.keeps(latents.halt_logits) if halting else torch.ones_like(latents.halt_logits, dtype=torch.bool)
        keep = keep if valid is None else keep & valid
        tokens = TokenTensor(
            spec=TokenSpec(
                self.name, self.dim, self.codebook_sizes, latents.grid, self.patch, tuple(images.shape[2:]), order="1d"
            ),
            embeds=embeds,
            indices=indices,
            scores=torch.sigmoid(-latents.halt_logits.float()),
        )
        return tokens.keep(keep)

    def decode(self, tokens: TokenTensor) -> Tensor:
        """Tokens of `encode`, all or any of them -> images [B, 3, H, W] in [0, 1], cropped to the encoded size.

        Raises: ValueError if the tokens say no grid, or are continuous and carry no embeds.
        """
        grid = tokens.spec.grid
        if len(grid) != 2:
            raise ValueError(f"{self.name}: expected tokens of a grid (rows, columns) in their spec, got {grid}")
        if not torch.compiler.is_compiling():
            tokens = tokens.trim()
        if tokens.embeds is not None:
            embeds = tokens.embeds
        elif self.quantize is not None and tokens.indices is not None:
            embeds = self.quantize.lookup(tokens.indices)
        else:
            raise ValueError(f"{self.name}: expected embeds, the tokens of this model have no ids to look up")
        slots = tokens.source
        if slots is None:
            slots = torch.arange(tokens.num_slots, device=tokens.device).expand(len(embeds), -1)
        valid = None if tokens.lengths is None else tokens.mask
        decoded = self.decode_latents(embeds, slots, valid, (grid[0], grid[1]))
        images: Tensor = self.base_tokenizer.pixels(decoded, grid)
        height, width = tokens.spec.image_size or images.shape[2:]
        return images[:, :, :height, :width].clamp(0.0, 1.0)

    def forward(self, images: Tensor) -> Reconstruction:
        """images [B, 3, H, W] in [0, 1], sides multiples of `patch` -> all of a pass with every slot of the budget."""
        run = self.run(images, self.budget, self.bins(self.eps, images), halting=False)
        pixels = self.base_tokenizer.pixels(run.decoded, run.grid)
        return Reconstruction(pixels, run.decoded, run.halt_logits, run.loss)

    def run(
        self,
        images: Tensor,
        budget: int,
        bins: Tensor,
        *,
        halting: bool,
        valid: Tensor | None = None,
        noise: Tensor | None = None,
    ) -> Run:
        """images [B, 3, H, W], `budget` slots, bins [B] int64 -> what a training step needs.

        halting: the decoder sees the slots that the model keeps, else all of them. valid, noise: as for `latents`.
        """
        latents = self.latents(images, budget, bins, valid=valid, noise=noise)
        if self.quantize is not None:
            embeds, indices, loss, _ = self.quantize(latents.values, valid)
        else:
            embeds, indices, loss = latents.values, None, latents.values.new_zeros(())
        keep = self.keeps(latents.halt_logits.detach()) if halting else valid
        slots = torch.arange(budget, device=images.device).expand(len(images), -1)
        decoded = self.decode_latents(embeds, slots, keep, latents.grid)
        if keep is None:
            keep = torch.ones_like(slots, dtype=torch.bool)
        return Run(decoded, latents.target, latents.grid, latents.halt_logits, keep, embeds, indices, loss)

    def latents(
        self, images: Tensor, budget: int, bins: Tensor, *, valid: Tensor | None = None, noise: Tensor | None = None
    ) -> Latents:
        """images [B, 3, H, W], T = budget, bins [B] int64 -> Latents; slots where `valid` [B, T] is False mean nothing.

        noise [B, E, h, w]: standard normal, draws the latents of a VAE base; None = their mean.
        """
        grid = (images.shape[2] // self.patch, images.shape[3] // self.patch)
        self._check_grid(grid)
        features = self.base_tokenizer.features(images, noise)
        patches = self.patch_embed(images - self.base_tokenizer.centre)
        seen = torch.cat([patches, features.latents.to(patches.dtype)], 1).flatten(2).transpose(1, 2)
        seen = seen + positions(self.encoder_positional_embedding, grid)
        error = self.rec_loss_embeddings[bins][:, None]
        slots = self.latent_tokens[:budget].expand(len(images), -1, -1)
        x = self.encoder_ln_pre(torch.cat([error, seen, slots], 1))
        before = x.shape[1] - budget
        mask = None if valid is None else torch.cat([valid.new_ones(len(valid), before), valid], 1)
        y = run_blocks(self.encoder.transformer, x, mask)[:, before:]
        halt_logits = self.halting_mlp(self.encoder_ln_post_halt(y))[..., 0]
        return Latents(y, self.pre_quantizer_mlp(self.encoder_ln_post(y)), halt_logits, features.target, grid)

    def decode_latents(self, embeds: Tensor, slots: Tensor, valid: Tensor | None, grid: tuple[int, int]) -> Tensor:
        """embeds [B, K, D] of slots [B, K], those that `valid` [B, K] marks (None = all) -> decoded [B, N, out]."""
        latents = self.decoder_embed(embeds.to(self.decoder_embed.weight.dtype))
        latents = latents + self.decoder_latent_tokens_timestep_embed[slots]
        masks = self.decoder_mask_token + positions(self.decoder_positional_embedding, grid)
        x = self.decoder.ln_pre(torch.cat([masks.expand(len(embeds), -1, -1).to(latents.dtype), latents], 1))
        count = grid[0] * grid[1]
        mask = None if valid is None else torch.cat([valid.new_ones(len(valid), count), valid], 1)
        y = run_blocks(self.decoder.transformer, x, mask)[:, :count]
        decoded: Tensor = self.decoder.ffn(self.decoder.ln_post(y))
        return decoded

    def bins(self, eps: float | Tensor, images: Tensor) -> Tensor:
        """Row of `epsilons` for each of B images, [B] int64: the smallest that is >= eps (float or [B]), or the last.

        Raises: ValueError if eps is negative, not finite, or not one per image.
        """
        asked = torch.as_tensor(eps, dtype=torch.float32, device=images.device)
        if asked.ndim > 1 or (asked.ndim == 1 and len(asked) != len(images)):
            raise ValueError(f"{self.name}: expected eps as a number or [B] with B={len(images)}, got {asked.shape}")
        if not torch.compiler.is_compiling() and not bool((asked >= 0).all()):
            raise ValueError(f"{self.name}: expected eps >= 0, a mean absolute error, got {asked.tolist()}")
        known = torch.tensor(self.epsilons, device=images.device)
        return torch.bucketize(asked.contiguous(), known).clamp(max=len(known) - 1).expand(len(images))

    def keeps(self, halt_logits: Tensor) -> Tensor:
        """halt_logits [B, T] -> bool: the probability to halt is no larger than the threshold."""
        return halt_logits <= math.log(self.halt_threshold / (1 - self.halt_threshold))

    def is_trained_on(self, grid: Sequence[int]) -> bool:
        """Whether images of this grid (h, w) were trained on; others work, and nothing is promised about them."""
        return tuple(grid) == self.trained_grid

    def set_calibration(self, bounds: Mapping[float, float]) -> None:
        """bounds: for requested errors, the error that holds; goes into the settings, and so into what is saved."""
        self.calibration = {str(asked): float(bound) for asked, bound in bounds.items()}
        settings: Any = self._hub_mixin_config
        settings["calibration"] = self.calibration

    def noise(
        self, images: Tensor, generator: torch.Generator | Sequence[torch.Generator] | None = None
    ) -> Tensor | None:
        """Standard normal [B, E, h, w] to draw the latents of a VAE base with, None for the other bases."""
        if not self.base_tokenizer.draws:
            return None
        shape = (self.base_tokenizer.channels, images.shape[2] // self.patch, images.shape[3] // self.patch)
        if isinstance(generator, Sequence):
            return torch.stack([torch.randn(shape, generator=one) for one in generator]).to(images)
        return torch.randn((len(images), *shape), generator=generator, device=images.device)

    def rename_keys(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The authors' checkpoints without what only training needs."""
        return {name: value for name, value in tensors.items() if not name.startswith("gan_losses.")}

    def _slots(self, budget: int | Tensor | None, images: Tensor) -> tuple[int, Tensor | None]:
        """T, and which slots each image may use where they differ."""
        if isinstance(budget, Tensor):
            if budget.shape != (len(images),) or budget.is_floating_point():
                raise ValueError(f"{self.name}: expected budget [B] int64 with B={len(images)}, got {budget.shape}")
            budget = budget.to(images.device)
            longest = int(budget.max()) if len(budget) else 1
            self._check_budget(int(budget.min()) if len(budget) else 1)
            self._check_budget(longest)
            return longest, torch.arange(longest, device=images.device) < budget[:, None]
        count = self.budget if budget is None else budget
        self._check_budget(count)
        return count, None

    def _check_budget(self, budget: int) -> None:
        if not 1 <= budget <= self.max_latents:
            raise ValueError(f"{self.name}: expected a budget in 1..{self.max_latents} slots, got {budget}")

    def _check_grid(self, grid: tuple[int, int]) -> None:
        largest = self.encoder_positional_embedding.shape[1]
        if max(grid) > largest:
            raise ValueError(
                f"{self.name}: expected at most {largest}x{largest} patches of {self.patch} pixels, got "
                f"{grid[0]}x{grid[1]}; resize the images with model.preprocess"
            )

    def _calibrated(self, eps: float | Tensor) -> float | Tensor:
        """The largest of `epsilons` whose measured bound is <= eps, the smallest if none is."""
        if not self.calibration:
            raise ValueError(f"{self.name}: expected a calibrated model; call calibrate of vistok.metrics.complexity")
        table = sorted((float(asked), bound) for asked, bound in self.calibration.items())
        asked, bounds = (torch.tensor(column) for column in zip(*table, strict=True))
        wanted = torch.as_tensor(eps, dtype=torch.float32)
        holds = bounds <= wanted[..., None].to(bounds.device)
        found: Tensor = asked.where(holds, asked[0]).amax(-1)
        return found


def positions(table: Tensor, grid: tuple[int, int]) -> Tensor:
    """table [W, G, G] at the nearest cells of a grid (h, w) -> [h*w, W]."""
    sampled = nn.functional.interpolate(table[None], size=grid, mode="nearest")
    return sampled[0].flatten(1).T


def _random(width: int, *shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(shape) * width**-0.5)
