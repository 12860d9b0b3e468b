"""VQGAN: Taming Transformers for High-Resolution Image Synthesis (arXiv:2012.09841), as its authors published it.

ImageNet, 16x16 pixels a token, 1024 or 16384 codes; OpenImages, 8x8 pixels, 256 or 16384 codes of width 4. The nearest
code by Euclidean distance, pixels in [-1, 1]; the weights were trained with beta on the codebook's term ("legacy").
"""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from vistok.layers.foreign_keys import taming_to_diffusers
from vistok.layers.grid_vq import GridVq
from vistok.quantizers.vq_learned import LearnedVQ
from vistok.registry import register
from vistok.tokenizers._taming_network import taming_network


@register
class Taming(GridVq):
    """Reads the authors' Lightning checkpoints; their losses and discriminators are left out."""

    def __init__(
        self,
        *,
        ch: int = 128,
        ch_mult: Sequence[int] = (1, 1, 2, 2, 4),
        num_res_blocks: int = 2,
        z_channels: int = 256,
        dim: int = 256,
        codebook_size: int = 1024,
        attention_levels: Sequence[int] = (4,),
        beta: float = 0.25,
        legacy: bool = True,
        preprocess: dict[str, Any] | None = None,
    ) -> None:
        """ch: width of the finest level, times `ch_mult` at each; dim: width of a code; legacy: where beta stands.

        attention_levels: 0 = full resolution. Raises: ValueError for a level that there is not.
        """
        patch = 2 ** (len(ch_mult) - 1)
        super().__init__("taming", patch=patch, dim=dim, codebook_sizes=(codebook_size,), preprocess=preprocess)
        network = taming_network(ch, ch_mult, num_res_blocks, z_channels, dim, attention_levels)
        self.encoder, self.quant_conv = network.encoder, network.quant_conv
        self.quantize = LearnedVQ(dim, codebook_size, commitment_weight=beta, legacy=legacy)
        self.post_quant_conv, self.decoder = network.post_quant_conv, network.decoder

    def rename_keys(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The authors' names to diffusers' and the codebook's."""
        return {
            name.replace("quantize.embedding.weight", "quantize.embedding"): value
            for name, value in taming_to_diffusers(tensors).items()
        }
