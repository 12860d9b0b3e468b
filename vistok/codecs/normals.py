"""Surface normals as tokens: AURORA's depth tokens (arXiv:2412.03548) carried over to three channels.

n = unit vectors in the camera's frame;  ids = VQ-VAE(n resized to S x S by nearest neighbour);  text =
<NORMAL_START><NORMAL_i>...<NORMAL_END>. The network is trained with 1 - cos + 0.1 squared error; what it gives out is
scaled to length 1.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from vistok.codecs._map_codec import MapCodec
from vistok.codecs._token_strings import NORMAL_ENDS, normal_codes
from vistok.layers.ait_vqvae import AitVqvae
from vistok.layers.map_losses import unit_normals
from vistok.registry import register

_SLACK = 0.02


@register
class Normals(MapCodec):
    """Maps of unit vectors [B, 3, H, W] to ids [B, N] and back to [B, 3, S, S]."""

    def __init__(self, *, image_size: int = 320, network: dict[str, Any] | None = None) -> None:
        """network: settings of `AitVqvae`. Raises: ValueError for settings that it refuses, or an image_size that is no
        multiple of its downsample."""
        settings = {"codes": 256, "loss": "cosine", **(network or {}), "channels": 3}
        vqvae = AitVqvae(**settings)
        codes = normal_codes(len(vqvae.codebook))
        super().__init__("normals", vqvae, image_size, (NORMAL_ENDS[0], NORMAL_ENDS[1]), codes, r"<NORMAL_[^<>\s]*>?")

    def inputs(self, values: Tensor) -> Tensor:
        """Unit vectors [B, 3, H, W] -> [B, 3, S, S]. Raises: ValueError naming the shape or length that is wrong."""
        if values.ndim != 4 or values.shape[1] != 3 or not values.is_floating_point():
            raise ValueError(f"{self.name}: expected normals [B, 3, H, W], got {list(values.shape)} {values.dtype}")
        lengths = torch.linalg.vector_norm(values.float(), dim=1)
        if not bool(((lengths - 1).abs() < _SLACK).all()):
            raise ValueError(
                f"{self.name}: expected vectors of length 1, got lengths {float(lengths.min()):.3g}.."
                f"{float(lengths.max()):.3g}; vistok.layers.map_losses.unit_normals scales them"
            )
        return F.interpolate(values.float(), (self.image_size, self.image_size), mode="nearest-exact")

    def outputs(self, maps: Tensor) -> Tensor:
        """[B, 3, S, S] -> the same directions at length 1."""
        return unit_normals(maps.float())
