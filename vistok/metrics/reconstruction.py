"""How close a reconstruction is pixel by pixel: PSNR, and SSIM (Wang et al. 2004, 11x11 Gaussian window)."""

import torch
from torch import Tensor

_RADIUS, _SIGMA = 5, 1.5
_C1, _C2 = 0.01**2, 0.03**2
_SMALLEST_MSE = 1e-10


def psnr(pred: Tensor, target: Tensor) -> Tensor:
    """Mean over images of 10 log10(1 / MSE) in dB: pred, target [B, C, H, W] in [0, 1], clamped -> [] float64.

    Equal images count as 100 dB, so that means stay finite. Raises: ValueError if shapes differ.
    """
    pred, target = _pair(pred, target)
    mse = (pred - target).square().mean((1, 2, 3)).clamp(min=_SMALLEST_MSE)
    return (-10 * mse.log10()).mean()


def ssim(pred: Tensor, target: Tensor) -> Tensor:
    """Mean structural similarity over images, channels and window positions inside the image: as `psnr` -> [] float64.

    sigma 1.5, K1 = 0.01, K2 = 0.03, biased variances. Raises: ValueError if shapes differ or a side is under 11 px.
    """
    pred, target = _pair(pred, target)
    if min(pred.shape[2:]) < 2 * _RADIUS + 1:
        raise ValueError(f"ssim: expected sides of at least {2 * _RADIUS + 1} px, got {list(pred.shape)}")
    mean_p, mean_t = _blur(pred), _blur(target)
    var_p = _blur(pred.square()) - mean_p.square()
    var_t = _blur(target.square()) - mean_t.square()
    covariance = _blur(pred * target) - mean_p * mean_t
    luminance = (2 * mean_p * mean_t + _C1) / (mean_p.square() + mean_t.square() + _C1)
    return (luminance * (2 * covariance + _C2) / (var_p + var_t + _C2)).mean()


def _pair(pred: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    if pred.shape != target.shape or pred.ndim != 4:
        raise ValueError(
            f"expected pred and target of one shape [B, C, H, W], got {list(pred.shape)} and {list(target.shape)}"
        )
    return pred.double().clamp(0, 1), target.double().clamp(0, 1)


def _blur(images: Tensor) -> Tensor:
    offsets = torch.arange(-_RADIUS, _RADIUS + 1, dtype=images.dtype, device=images.device)
    window = torch.exp(-0.5 * (offsets / _SIGMA).square())
    # Weighted sums of shifted views: the CPU's convolution takes four times as long for one channel in float64.
    for axis in (2, 3):
        length = images.shape[axis] - 2 * _RADIUS
        views = [images.narrow(axis, start, length) for start in range(len(window))]
        blurred = views[0] * (window[0] / window.sum())
        for view, weight in zip(views[1:], (window[1:] / window.sum()).tolist(), strict=True):
            blurred.add_(view, alpha=weight)
        images = blurred
    return images
