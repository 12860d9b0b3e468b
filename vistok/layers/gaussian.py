"""Diagonal Gaussian bottleneck of a variational autoencoder (Kingma & Welling, arXiv:1312.6114)."""

from typing import NamedTuple

import torch
from torch import Tensor


class Gaussian(NamedTuple):
    """mean, logvar [..., C] float32."""

    mean: Tensor
    logvar: Tensor

    @classmethod
    def from_moments(cls, moments: Tensor) -> "Gaussian":
        """moments [..., 2C], the mean first; logvar is clamped to [-30, 20] as in latent diffusion."""
        mean, logvar = moments.float().chunk(2, dim=-1)
        return cls(mean, logvar.clamp(-30.0, 20.0))

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """Draw [..., C]; gradients reach both moments."""
        noise = torch.randn(self.mean.shape, generator=generator, device=self.mean.device)
        return self.mean + torch.exp(0.5 * self.logvar) * noise

    def kl(self) -> Tensor:
        """KL divergence to the unit Gaussian in nats, mean over all elements: []."""
        return 0.5 * (self.mean.square() + self.logvar.exp() - 1.0 - self.logvar).mean()
