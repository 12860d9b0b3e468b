"""Depth maps as tokens, "Perception Tokens Enhance Visual Reasoning" (AURORA, arXiv:2412.03548, section 3.1).

v = depth in 0..1, nearest 1;  x = 2 v - 1, resized to S x S by nearest neighbour;  ids = VQ-VAE(x), row by row;
text = <DEPTH_START><DEPTH_i>...<DEPTH_END>. The published one has S = 320 and 10 x 10 of 128 codes.
The tokens say what is nearer, not how many metres away: limits of the range are not in them (`DepthRange.undo`).
"""

from typing import Any

from torch import Tensor
from torch.nn import functional as F

from vistok.codecs._map_codec import MapCodec
from vistok.codecs._token_strings import DEPTH_ENDS, depth_codes
from vistok.layers.ait_vqvae import AitVqvae
from vistok.layers.depth_range import DepthRange
from vistok.registry import register


@register
class Depth(MapCodec):
    """Maps of depth [B, 1, H, W] to ids [B, N] and back to relative depth [B, 1, S, S] in 0..1, nearest high."""

    def __init__(
        self,
        *,
        image_size: int = 320,
        polarity: str = "near_high",
        normalize: str = "minmax",
        inversion: str = "reciprocal",
        network: dict[str, Any] | None = None,
    ) -> None:
        """polarity, normalize, inversion: of the maps to encode, as of `DepthRange`; network: settings of `AitVqvae`.

        "near_high" with "none" is AURORA's own input, 8-bit maps of a monocular network; metres are "near_low".
        Raises: ValueError for settings that `DepthRange` or `AitVqvae` refuse, or an image_size that is no multiple of
        the network's downsample.
        """
        vqvae = AitVqvae(**(network or {}))
        codes = depth_codes(len(vqvae.codebook))
        super().__init__("depth", vqvae, image_size, (DEPTH_ENDS[0], DEPTH_ENDS[1]), codes, r"<DEPTH_[^<>\s]*>?")
        self.range = DepthRange(polarity, normalize, inversion)

    def inputs(self, values: Tensor) -> Tensor:
        """Depth [B, 1, H, W] or [B, H, W] -> [B, 1, S, S] in -1..1. Raises: as `DepthRange.apply`."""
        near_high = self.range.apply(values).values
        # "nearest-exact" takes the pixel whose centre is nearest, as Pillow does; "nearest" is half a pixel off.
        return F.interpolate(near_high, (self.image_size, self.image_size), mode="nearest-exact") * 2 - 1

    def outputs(self, maps: Tensor) -> Tensor:
        """[B, 1, S, S] around -1..1 -> relative depth in 0..1, nearest high."""
        return (maps.float() * 0.5 + 0.5).clamp(0, 1)
