"""The image tokenizer of Chameleon (arXiv:2405.09818) and Anole (arXiv:2407.06135): 16x16 pixels a token, 8192 codes.

A VQGAN of taming-transformers with attention in the middle only, pixels in [-1, 1]. Reads the authors' `vqgan.ckpt`
under taming's names, diffusers' names, and the `model.vqmodel.*` of transformers' models, which is the encoder alone.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from vistok.layers.codebook import Codebook
from vistok.layers.foreign_keys import part_of, taming_to_diffusers
from vistok.layers.grid_vq import GridVq
from vistok.registry import register
from vistok.tokenizers._vq_model import vq_model


@register
class Chameleon(GridVq):
    """Codes by Euclidean distance; without `decoder` it encodes only."""

    def __init__(
        self,
        *,
        ch: int = 128,
        ch_mult: Sequence[int] = (1, 1, 2, 2, 4),
        num_res_blocks: int = 2,
        z_channels: int = 256,
        dim: int = 256,
        codebook_size: int = 8192,
        decoder: bool = True,
        preprocess: dict[str, Any] | None = None,
    ) -> None:
        """ch: width of the finest level, times `ch_mult` at each; dim: width of a code.

        decoder: False for the weights inside transformers' models, which leave it out.
        """
        super().__init__(
            "chameleon",
            patch=2 ** (len(ch_mult) - 1),
            dim=dim,
            codebook_sizes=(codebook_size,),
            preprocess=preprocess,
        )
        network = vq_model([ch * factor for factor in ch_mult], num_res_blocks, z_channels, dim)
        self.encoder, self.quant_conv = network.encoder, network.quant_conv
        self.quantize = Codebook(codebook_size, dim, normalise=False)
        self.post_quant_conv = network.post_quant_conv
        if decoder:
            self.decoder = network.decoder
        else:
            self.cannot = self.cannot | {"decode", "backward"}

    def rename_keys(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Of a whole model the tokenizer only; taming's names to diffusers'."""
        return taming_to_diffusers(part_of(tensors, "model.vqmodel.", "vqmodel."))
