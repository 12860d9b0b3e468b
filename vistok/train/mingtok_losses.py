"""What MingTok is trained on (arXiv:2510.06590, section 2.2): features at masked places, and pixels.

Latents and semantic tokens each predict, through a head, what a frozen teacher says at the places whose patches were
masked; the pixel decoder reconstructs the picture. Ratios, weights and heads are not published: those here are ours.
B images, N tokens, M pixel patches, K values of a patch.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from vistok.layers.mingtok_stages import spread
from vistok.layers.patchify import patchify, unpatchify
from vistok.tokenizers.mingtok import MingTok, grid_of_pixels
from vistok.train.alignment import AlignmentLoss
from vistok.train.masked_features import FeatureHead, feature_loss

_NORM_EPS = 1e-6


def l1_plain(prediction: Tensor, target: Tensor, masked: Tensor | None = None, normalize: bool = False) -> Tensor:
    """Mean absolute error of patches [B, M, K], over those that are not `masked` [B, M]; never normalized."""
    return _over_visible((prediction - target).abs().mean(-1), masked)


def l1_rescaled(prediction: Tensor, target: Tensor, masked: Tensor | None = None, normalize: bool = False) -> Tensor:
    """As `l1_plain`, of a prediction whose values, all together, are stretched to fill [-1, 1]."""
    low, high = prediction.min(), prediction.max()
    return l1_plain((prediction - low) / (high - low).clamp(min=_NORM_EPS) * 2 - 1, target, masked)


def l1_tanh(prediction: Tensor, target: Tensor, masked: Tensor | None = None, normalize: bool = False) -> Tensor:
    """As `l1_plain`, of the prediction's hyperbolic tangent."""
    return l1_plain(prediction.tanh(), target, masked)


def l2(prediction: Tensor, target: Tensor, masked: Tensor | None = None, normalize: bool = False) -> Tensor:
    """Mean squared error; normalize: of targets with zero mean and unit (unbiased) variance within each patch."""
    if normalize:
        centred = target - target.mean(-1, keepdim=True)
        target = centred / (target.var(-1, keepdim=True) + _NORM_EPS).sqrt()
    return _over_visible((prediction - target).square().mean(-1), masked)


PIXEL_LOSSES: dict[str, Callable[..., Tensor]] = {
    "L1-plain": l1_plain,
    "L1": l1_rescaled,
    "L1-tanh": l1_tanh,
    "L2": l2,
}


def pixel_loss(name: str) -> Callable[..., Tensor]:
    """The pixel loss by the `loss_type` of the authors' config. Raises: ValueError naming those there are."""
    if name not in PIXEL_LOSSES:
        raise ValueError(f"pixel loss: expected one of {', '.join(PIXEL_LOSSES)}, got {name!r}")
    return PIXEL_LOSSES[name]


def _over_visible(errors: Tensor, masked: Tensor | None) -> Tensor:
    if masked is None:
        return errors.mean()
    seen = (~masked).to(errors.dtype)
    return (errors * seen).sum() / seen.sum().clamp(min=1)


class Heads(nn.Module):
    """What trains beside the tokenizer and is not shipped: the mask token, and a head for each teacher there is."""

    def __init__(
        self,
        model: MingTok,
        latent_dim: int | None,
        semantic_dim: int | None,
        alignment: AlignmentLoss | None = None,
    ) -> None:
        """latent_dim, semantic_dim: widths of the teachers, None where there is none; alignment: of latents, if any."""
        super().__init__()
        width = model.low_level_encoder.cls_token.shape[-1]
        self.mask_token = nn.Parameter(0.02 * torch.randn(width))
        self.latent = None if latent_dim is None else FeatureHead(model.dim, latent_dim)
        self.semantic = None if semantic_dim is None else FeatureHead(model.semantic_dim, semantic_dim)
        self.alignment = alignment


class Targets(NamedTuple):
    """Features [B, N, D] of the teachers on the student's grid, None where there is no teacher."""

    latent: Tensor | None = None
    semantic: Tensor | None = None


class Step(NamedTuple):
    """Loss terms by name, unweighted; images [B, 3, H, W], reconstructed, not clamped; raw latents [B, N, C]."""

    terms: dict[str, Tensor]
    images: Tensor
    latents: Tensor


def masked_step(
    model: MingTok, heads: Heads, images: Tensor, masked: Tensor, targets: Targets, visible_weight: float = 0.0
) -> Step:
    """One pass of all three stages with the patches of `masked` [B, N] hidden from the encoder.

    images [B, 3, H, W] in [0, 1], sides multiples of a patch. Terms: "pixels" (the `loss_type` of the model, over
    patches that were seen), "latent" and "semantic" where there is a teacher (over those that were not).
    """
    pixels = images * 2 - 1
    grid = model.low_level_encoder.grid(pixels)
    raw = model.low_level_encoder(pixels, masked, heads.mask_token)
    semantic = model.semantic_decoder(raw)
    patches = model.pixel_patches(semantic[:, :-1], grid).float()
    factor = model.spread_factor
    hidden = spread(masked[..., None].expand(-1, -1, factor**2), grid, factor)[..., 0]
    target = patchify(pixels, model.pixel_decoder.patch_size)
    loss = pixel_loss(model.loss_type)
    terms = {"pixels": loss(patches, target, masked=hidden, normalize=model.norm_pix_loss)}
    if heads.latent is not None and targets.latent is not None:
        terms["latent"] = feature_loss(heads.latent(raw[:, :-1]), targets.latent, masked, visible_weight)
    if heads.semantic is not None and targets.semantic is not None:
        terms["semantic"] = feature_loss(heads.semantic(semantic[:, :-1]), targets.semantic, masked, visible_weight)
    return Step(terms, (unpatchify(patches, grid_of_pixels(grid, factor)) + 1) / 2, raw[:, :-1])
