"""The image tokenizer of Janus and Janus-Pro (arXiv:2410.13848, arXiv:2501.17811), LlamaGen's VQ-16 (arXiv:2406.06525).

16x16 pixels a token, 16384 codes of width 8, pixels in [-1, 1]; the network is transformers' JanusVQVAE. Vectors and
codes are compared at length 1: that class compares them as they are, which gives other ids unless all codes of the file
have length 1, and it decodes one resolution only. Here any resolution is decoded.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from vistok.layers.codebook import Codebook
from vistok.layers.foreign_keys import part_of
from vistok.layers.grid_vq import GridVq
from vistok.registry import register

try:
    from transformers.models.janus.configuration_janus import JanusVQVAEConfig
    from transformers.models.janus.modeling_janus import JanusVQVAE
except ModuleNotFoundError as error:
    raise ImportError("the tokenizer janus needs the extra: pip install 'vistok[lvlm]' (transformers)") from error

_MIDDLE = ("block_1", "attn_1", "block_2")


@register
class Janus(GridVq):
    """Codes by cosine similarity."""

    def __init__(
        self,
        *,
        base_channels: int = 128,
        channel_multiplier: Sequence[int] = (1, 1, 2, 2, 4),
        num_res_blocks: int = 2,
        latent_channels: int = 256,
        dim: int = 8,
        codebook_size: int = 16384,
        preprocess: dict[str, Any] | None = None,
    ) -> None:
        """base_channels: width of the finest level, times `channel_multiplier` at each; dim: width of a code."""
        super().__init__(
            "janus",
            patch=2 ** (len(channel_multiplier) - 1),
            dim=dim,
            codebook_sizes=(codebook_size,),
            preprocess=preprocess,
        )
        network: Any = JanusVQVAE(
            JanusVQVAEConfig(
                base_channels=base_channels,
                channel_multiplier=list(channel_multiplier),
                num_res_blocks=num_res_blocks,
                latent_channels=latent_channels,
                embed_dim=dim,
                num_embeddings=1,
            )
        )
        self.encoder, self.quant_conv = network.encoder, network.quant_conv
        self.quantize = Codebook(codebook_size, dim, normalise=True)
        self.post_quant_conv, self.decoder = network.post_quant_conv, network.decoder

    def rename_keys(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Of a whole model (transformers' or the authors') the tokenizer only; the authors' names to JanusVQVAE's.

        These are LlamaGen's names too: alone, outside a Janus, they are the file of a LlamaGen and stay as they are.
        """
        theirs = part_of(tensors, "gen_vision_model.")
        if any(name.startswith("gen_vision_model.") for name in tensors):
            return from_llamagen(theirs)
        return part_of(tensors, "model.vqmodel.", "vqmodel.")


def from_llamagen(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """LlamaGen's names to JanusVQVAE's, without the history of used codes."""
    return {_renamed(name): value for name, value in tensors.items() if name != "quantize.codebook_used"}


def _renamed(name: str) -> str:
    name = re.sub(r"^encoder\.conv_blocks\.(\d+)\.res\.", r"encoder.down.\1.block.", name)
    name = re.sub(r"^decoder\.conv_blocks\.(\d+)\.res\.", r"decoder.up.\1.block.", name)
    name = re.sub(r"^encoder\.conv_blocks\.", "encoder.down.", name)
    name = re.sub(r"^decoder\.conv_blocks\.", "decoder.up.", name)
    return re.sub(r"\.mid\.([012])\.", lambda found: f".mid.{_MIDDLE[int(found[1])]}.", name)
