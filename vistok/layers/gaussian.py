"""Diagonal Gaussian bottleneck of a variational autoencoder (Kingma & Welling, arXiv:1312.6114)."""

from collections.abc import Sequence
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

    def sample(self, generator: torch.Generator | Sequence[torch.Generator] | None = None) -> Tensor:
        """Draw [..., C]; gradients reach both moments. Several generators: one for each item of a batch [B, ..., C].

        Raises: ValueError unless there are as many generators as items.
        """
        if isinstance(generator, Sequence):
            if len(generator) != len(self.mean):
                raise ValueError(f"expected one generator or one per item, {len(self.mean)}, got {len(generator)}")
            draws = [torch.randn(self.mean.shape[1:], generator=one, device=one.device) for one in generator]
            noise = torch.stack(draws).to(self.mean.device)
        else:
            noise = torch.randn(self.mean.shape, generator=generator, device=self.mean.device)
        return self.mean + torch.exp(0.5 * self.logvar) * noise

    def kl(self) -> Tensor:
        """KL divergence to the unit Gaussian in nats, mean over all elements: []."""
        return 0.5 * (self.mean.square() + self.logvar.exp() - 1.0 - self.logvar).mean()
