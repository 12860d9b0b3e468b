"""Mean and standard deviation of latents in one streaming pass, with the precision of two (Chan et al. 1983)."""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor


class Statistics(NamedTuple):
    """mean, std [C] float64 of each channel; overall_mean, overall_std: of all channels together."""

    mean: Tensor
    std: Tensor
    overall_mean: float
    overall_std: float


class RunningMoments:
    """Count, mean and squared deviations per channel; two of them can be merged, as of two workers."""

    def __init__(self, channels: int) -> None:
        self.count = 0
        self.mean = torch.zeros(channels, dtype=torch.float64)
        self.deviations = torch.zeros(channels, dtype=torch.float64)

    def update(self, latents: Tensor) -> None:
        """Take in latents [..., C]. Raises: ValueError for another C or for values that are not finite."""
        rows = latents.detach().double().cpu().reshape(-1, latents.shape[-1])
        if rows.shape[1] != len(self.mean) or not bool(rows.isfinite().all()):
            raise ValueError(f"latent statistics: expected finite latents [..., {len(self.mean)}], got {latents.shape}")
        if len(rows):
            other = RunningMoments(rows.shape[1])
            other.count, other.mean = len(rows), rows.mean(0)
            other.deviations = (rows - other.mean).square().sum(0)
            self.merge(other)

    def merge(self, other: "RunningMoments") -> None:
        """Add what another one has seen."""
        count = self.count + other.count
        if other.count:
            apart = other.mean - self.mean
            self.deviations += other.deviations + apart.square() * self.count * other.count / count
            self.mean = self.mean + apart * (other.count / count)
            self.count = count

    def result(self) -> Statistics:
        """Raises: ValueError if nothing was seen."""
        if not self.count:
            raise ValueError("latent statistics: expected at least one latent, got none")
        variance = self.deviations / self.count
        overall = self.mean.mean()
        overall_variance = variance.mean() + (self.mean - overall).square().mean()
        return Statistics(self.mean, variance.sqrt(), float(overall), float(overall_variance.sqrt()))


@torch.inference_mode()
def latent_statistics(encode: Callable[[Tensor], Tensor], batches: Iterable[Tensor], channels: int) -> Statistics:
    """Statistics of encode(images) [..., C], raw latents, over batches of images [B, 3, H, W]."""
    moments = RunningMoments(channels)
    for images in batches:
        moments.update(encode(images))
    return moments.result()
