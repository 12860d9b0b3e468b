"""Reconstruction losses by name: pred and target [B, 3, H, W], target in [0, 1] -> [] float32."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

Loss = Callable[[Tensor, Tensor], Tensor]


def l1(pred: Tensor, target: Tensor) -> Tensor:
    """Mean absolute error."""
    return (pred - target).abs().mean()


def l2(pred: Tensor, target: Tensor) -> Tensor:
    """Mean squared error."""
    return (pred - target).square().mean()


def log_l2(pred: Tensor, target: Tensor) -> Tensor:
    """Mean over images of ln(MSE + 1e-3): 0.23 per dB of mean PSNR, so smooth images count as much as busy ones."""
    return (pred - target).square().mean((1, 2, 3)).add(1e-3).log().mean()


def rmse(pred: Tensor, target: Tensor) -> Tensor:
    """Mean over images of the root mean squared error; between l2 and log_l2 in what a busy image counts."""
    return (pred - target).square().mean((1, 2, 3)).add(1e-6).sqrt().mean()


def st_lpips() -> Loss:
    """Shift-tolerant LPIPS, AlexNet (Ghildyal & Liu, arXiv:2207.13686), from the package stlpips-pytorch.

    Raises: ImportError naming the extra if the package is absent.
    """
    from vistok.metrics.perceptual import st_lpips_network

    network = st_lpips_network()
    return lambda pred, target: network(pred * 2 - 1, target * 2 - 1).mean()


def make_losses(weights: dict[str, float]) -> dict[str, tuple[float, Loss]]:
    """Name -> (weight, function). Raises: ValueError naming the losses there are."""
    plain: dict[str, Loss] = {"l1": l1, "l2": l2, "log_l2": log_l2, "rmse": rmse}
    made: dict[str, tuple[float, Loss]] = {}
    for name, weight in weights.items():
        if name not in (*plain, "st_lpips"):
            raise ValueError(f"losses: expected names from {(*plain, 'st_lpips')}, got {name!r}")
        made[name] = (weight, st_lpips() if name == "st_lpips" else plain[name])
    return made


class PatchDiscriminator(nn.Module):
    """PatchGAN (Isola et al., arXiv:1611.07004): [B, 3, H, W] -> one logit per patch; batch-free GroupNorm."""

    def __init__(self, width: int = 32, layers: int = 3) -> None:
        super().__init__()
        parts: list[nn.Module] = [nn.Conv2d(3, width, 4, 2, 1), nn.LeakyReLU(0.2)]
        for _ in range(layers - 1):
            parts += [nn.Conv2d(width, 2 * width, 4, 2, 1), nn.GroupNorm(8, 2 * width), nn.LeakyReLU(0.2)]
            width *= 2
        self.net = nn.Sequential(*parts, nn.Conv2d(width, 1, 3, padding=1))

    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, 1, h, w]."""
        logits: Tensor = self.net(images * 2 - 1)
        return logits


def hinge_discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Hinge loss of the discriminator's logits."""
    return torch.relu(1 - real).mean() + torch.relu(1 + fake).mean()
