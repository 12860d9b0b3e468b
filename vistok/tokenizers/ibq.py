"""IBQ: Scalable Image Tokenization with Index Backpropagation Quantization (arXiv:2412.02692), 16x16 pixels a token.

The VQGAN of taming-transformers with four blocks a level; 1024 to 262144 codes of width 256, pixels in [-1, 1]. A code
is chosen by its dot product, without norms: the nearest code by distance would be another one for two of five vectors.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from vistok.layers.averaged_weights import averaged_weights
from vistok.layers.foreign_keys import taming_to_diffusers
from vistok.layers.grid_vq import GridVq
from vistok.quantizers.ibq import IBQ
from vistok.registry import register
from vistok.tokenizers._taming_network import taming_network


@register
class Ibq(GridVq):
    """Reads the authors' Lightning checkpoints: averaged weights, as their evaluation, unless `ema` is False."""

    def __init__(
        self,
        *,
        ch: int = 128,
        ch_mult: Sequence[int] = (1, 1, 2, 2, 4),
        num_res_blocks: int = 4,
        z_channels: int = 256,
        dim: int = 256,
        codebook_size: int = 16384,
        attention_levels: Sequence[int] = (4,),
        beta: float = 0.25,
        entropy_weight: float = 0.05,
        ema: bool = True,
        preprocess: dict[str, Any] | None = None,
    ) -> None:
        """ch: width of the finest level, times `ch_mult` at each; dim: width of a code; ema: which weights to read.

        attention_levels: 0 = full resolution. Raises: ValueError for a level that there is not.
        """
        patch = 2 ** (len(ch_mult) - 1)
        super().__init__("ibq", patch=patch, dim=dim, codebook_sizes=(codebook_size,), preprocess=preprocess)
        self.ema = ema
        network = taming_network(ch, ch_mult, num_res_blocks, z_channels, dim, attention_levels)
        self.encoder, self.quant_conv = network.encoder, network.quant_conv
        self.quantize = IBQ(dim, codebook_size, beta=beta, entropy_weight=entropy_weight)
        self.post_quant_conv, self.decoder = network.post_quant_conv, network.decoder

    def rename_keys(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The authors' names, averages in place of plain weights, to diffusers' and the codebook's."""
        return {
            name.replace("quantize.embedding.weight", "quantize.codebook"): value
            for name, value in taming_to_diffusers(averaged_weights(tensors, ema=self.ema)).items()
        }
