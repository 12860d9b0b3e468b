"""What MingTok is trained on (arXiv:2510.06590, section 2.2): features at masked places, and pixels.

Latents and semantic tokens each predict, through a head, what a frozen teacher says at the places whose patches were
masked; the pixel decoder reconstructs the picture. B images, M pixel patches, K values of a patch.
"""

from collections.abc import Callable

from torch import Tensor

_NORM_EPS = 1e-6


def l1_plain(prediction: Tensor, target: Tensor, masked: Tensor | None = None, normalize: bool = False) -> Tensor:
    """Mean absolute error of patches [B, M, K], over those that are not `masked` [B, M]; never normalized."""
    return _over_visible((prediction - target).abs().mean(-1), masked)


def l1_rescaled(prediction: Tensor, target: Tensor, masked: Tensor | None = None, normalize: bool = False) -> Tensor:
    """As `l1_plain`, of a prediction whose values, all together, are stretched to fill [-1, 1]."""
    low, high = prediction.min(), prediction.max()
    return l1_plain((prediction - low) / (high - low) * 2 - 1, target, masked)


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
