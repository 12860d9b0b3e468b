"""The image tokenizers of LlamaGen (arXiv:2406.06525): VQ-16 and VQ-8, 16384 codes of width 8, pixels in [-1, 1].

The network is that of Janus, whose authors took it from here (transformers' JanusVQVAE). Vectors and codes are
normalised at every use; the rows of the published codebooks are not of length 1, and ids that ignore this are wrong.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from vistok.quantizers.vq_learned import LearnedVQ
from vistok.registry import register
from vistok.tokenizers.janus import Janus, from_llamagen


@register
class LlamaGen(Janus):
    """Reads the authors' checkpoints: "ema" where there is one, unless `ema` is False."""

    def __init__(
        self,
        *,
        ch: int = 128,
        ch_mult: Sequence[int] = (1, 1, 2, 2, 4),
        num_res_blocks: int = 2,
        z_channels: int = 256,
        dim: int = 8,
        codebook_size: int = 16384,
        beta: float = 0.25,
        entropy_weight: float = 0.0,
        ema: bool = True,
        preprocess: dict[str, Any] | None = None,
    ) -> None:
        """ch: width of the finest level, times `ch_mult` at each; dim: width of a code; ema: which weights to read."""
        super().__init__(
            base_channels=ch,
            channel_multiplier=ch_mult,
            num_res_blocks=num_res_blocks,
            latent_channels=z_channels,
            dim=dim,
            codebook_size=codebook_size,
            preprocess=preprocess,
        )
        self.name = "llamagen"
        self.weights_under = ("ema",) if ema else ("model",)
        self.quantize = LearnedVQ(
            dim, codebook_size, metric="cosine", commitment_weight=beta, entropy_weight=entropy_weight
        )

    def rename_keys(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The authors' names to JanusVQVAE's and the codebook's; their history of used codes is left out.

        Files that hold a whole Janus are not LlamaGen's.
        """
        if not any(name.startswith("quantize.") for name in tensors):
            return dict(tensors)
        return {
            name.replace("quantize.embedding.weight", "quantize.embedding"): value
            for name, value in from_llamagen(tensors).items()
        }
