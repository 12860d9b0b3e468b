"""Open-MAGVIT2: An Open-Source Project Toward Democratizing Auto-Regressive Visual Generation (arXiv:2409.04410).

Lookup-free quantization: 2^18 codes (2^14 in one release), the signs of the encoder's channels, of which channel 0 is
the lowest bit of an id. Pixels in [-1, 1]. Its generators see an id as two: `vistok.ops.split_ids(ids, (6, 12))`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from vistok.layers.averaged_weights import averaged_weights
from vistok.layers.grid_vq import GridVq
from vistok.layers.magvit2 import Magvit2Decoder, Magvit2Encoder
from vistok.quantizers.lfq import LFQ
from vistok.registry import register


@register
class OpenMagvit2(GridVq):
    """Reads the authors' Lightning checkpoints: averaged weights, as their evaluation, unless `ema` is False."""

    def __init__(
        self,
        *,
        ch: int = 128,
        ch_mult: Sequence[int] = (1, 1, 2, 2, 4),
        num_res_blocks: int = 4,
        dim: int = 18,
        commitment_weight: float = 0.25,
        entropy_weight: float = 0.1,
        entropy_group: int = 9,
        ema: bool = True,
        preprocess: dict[str, Any] | None = None,
    ) -> None:
        """ch: width of the finest level, times `ch_mult` at each; dim: bits of an id; ema: which weights to read.

        entropy_group: as of the quantizer `lfq`.
        """
        patch = 2 ** (len(ch_mult) - 1)
        super().__init__("open_magvit2", patch=patch, dim=dim, codebook_sizes=(2**dim,), preprocess=preprocess)
        self.ema = ema
        self.encoder = Magvit2Encoder(ch, ch_mult, num_res_blocks, dim)
        self.quant_conv = self.post_quant_conv = nn.Identity()
        self.quantize = LFQ(
            dim,
            bit_order="lsb",
            commitment_weight=commitment_weight,
            entropy_weight=entropy_weight,
            entropy_group=entropy_group,
        )
        self.decoder = Magvit2Decoder(ch, ch_mult, num_res_blocks, dim)

    def rename_keys(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Averages in place of plain weights; the names are the authors'."""
        return averaged_weights(tensors, ema=self.ema)
