"""diffusers' VQModel as the network of a tokenizer: its four parts, without its quantizer."""

from collections.abc import Sequence
from typing import Any

from diffusers.models.autoencoders.vq_model import VQModel


def vq_model(
    block_out_channels: Sequence[int], layers_per_block: int, latent_channels: int, dim: int, **options: Any
) -> Any:
    """Encoder, decoder, quant_conv and post_quant_conv as attributes; a level per width, attention in the middle only.

    latent_channels: width of the features before quant_conv, dim: of the codes. options: more of VQModel's settings.
    """
    levels = len(block_out_channels)
    settings = {
        "down_block_types": ("DownEncoderBlock2D",) * levels,
        "up_block_types": ("UpDecoderBlock2D",) * levels,
        **options,
    }
    # One code: its table is not used, `quantize` of the tokenizer searches with distances that do not round away.
    return VQModel(
        block_out_channels=tuple(block_out_channels),
        layers_per_block=layers_per_block,
        latent_channels=latent_channels,
        vq_embed_dim=dim,
        num_vq_embeddings=1,
        **settings,
    )
