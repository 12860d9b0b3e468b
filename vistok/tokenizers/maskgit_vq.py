"""The VQGAN of MaskGIT (arXiv:2202.04200): 16x16 pixels a token, 1024 codes, no attention; pixels in [0, 1].

Reads the weights that TiTok's and KARL's authors publish, under either's names. B images, D code width.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from vistok.layers.codebook import Codebook
from vistok.layers.grid_vq import GridVq
from vistok.layers.maskgit_vqgan import VqganDecoder, VqganEncoder, renamed_parts
from vistok.registry import register


@register
class MaskGitVq(GridVq):
    """Codes by Euclidean distance over convolutional features."""

    black = 0.0

    def __init__(
        self,
        *,
        ch: int = 128,
        ch_mult: Sequence[int] = (1, 1, 2, 2, 4),
        num_res_blocks: int = 2,
        dim: int = 256,
        codebook_size: int = 1024,
        preprocess: dict[str, Any] | None = None,
    ) -> None:
        """ch: width of the finest level, times `ch_mult` at each; dim: width of a code."""
        super().__init__(
            "maskgit_vq",
            patch=2 ** (len(ch_mult) - 1),
            dim=dim,
            codebook_sizes=(codebook_size,),
            preprocess=preprocess,
        )
        self.encoder = VqganEncoder(ch, ch_mult, num_res_blocks, dim)
        self.quant_conv = self.post_quant_conv = nn.Identity()
        self.quantize = Codebook(codebook_size, dim, normalise=False)
        self.decoder = VqganDecoder(ch, ch_mult, num_res_blocks, dim, mid_blocks=num_res_blocks)

    def rename_keys(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The names in TiTok's releases to those that KARL's authors gave the same layers."""
        return {renamed_parts(name): value for name, value in tensors.items()}
