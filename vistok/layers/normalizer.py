"""Latents with their scale in the type, so that normalising twice is an error and not a silent bug."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn


@dataclass(frozen=True, eq=False)
class RawLatent:
    """Latents as a network makes and takes them: values [..., C]."""

    values: Tensor


@dataclass(frozen=True, eq=False)
class NormalizedLatent:
    """Latents of zero mean and unit variance per channel, as generators want them: values [..., C]."""

    values: Tensor


class LatentNormalizer(nn.Module):
    """(z - mean) / std per channel, one way for each type; the statistics stay float32, latents keep their dtype."""

    mean: Tensor
    std: Tensor

    def __init__(self, channels: int, *, persistent: bool = True) -> None:
        """persistent: whether the statistics are part of the state, or come from settings."""
        super().__init__()
        self.register_buffer("mean", torch.zeros(channels, dtype=torch.float32), persistent=persistent)
        self.register_buffer("std", torch.ones(channels, dtype=torch.float32), persistent=persistent)

    def set_statistics(self, mean: Sequence[float] | Tensor, std: Sequence[float] | Tensor) -> None:
        """Set mean and std [C]. Raises: ValueError unless there are C of each, finite, and every std is positive."""
        mean, std = torch.as_tensor(mean), torch.as_tensor(std)
        if mean.shape != self.mean.shape or std.shape != self.std.shape:
            raise ValueError(
                f"LatentNormalizer: expected mean and std {list(self.mean.shape)}, got {list(mean.shape)} and "
                f"{list(std.shape)}"
            )
        if not bool((std > 0).all() and torch.isfinite(std).all() and torch.isfinite(mean).all()):
            raise ValueError(f"LatentNormalizer: expected finite means and positive std, got std {std.tolist()}")
        self.mean.copy_(mean)
        self.std.copy_(std)

    def normalize(self, latent: RawLatent) -> NormalizedLatent:
        """Raises: TypeError if the latent is normalized already."""
        if not isinstance(latent, RawLatent):
            raise TypeError(f"normalize: expected RawLatent, got {type(latent).__name__}; it is applied once only")
        return NormalizedLatent(((latent.values - self.mean) / self.std).to(latent.values.dtype))

    def denormalize(self, latent: NormalizedLatent) -> RawLatent:
        """Raises: TypeError if the latent is raw already."""
        if not isinstance(latent, NormalizedLatent):
            raise TypeError(f"denormalize: expected NormalizedLatent, got {type(latent).__name__}")
        return RawLatent((latent.values * self.std + self.mean).to(latent.values.dtype))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        def moved(value: Tensor) -> Tensor:
            out = fn(value)
            return out if out.dtype == value.dtype else value.to(out.device)

        # Statistics rounded to half precision would shift and scale every latent.
        return super()._apply(moved, recurse)  # type: ignore[no-untyped-call, no-any-return]
