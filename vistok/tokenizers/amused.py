"""The image tokenizer of aMUSEd (arXiv:2401.01808): 16x16 pixels a token, 8192 codes; pixels in [0, 1].

diffusers' VQModel without attention, from the `vqvae` folder of a published pipeline: `hf:amused/amused-512/vqvae`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from vistok.layers.codebook import Codebook
from vistok.layers.grid_vq import GridVq, is_foreign
from vistok.registry import register
from vistok.tokenizers._vq_model import vq_model

_SETTINGS = {
    "block_out_channels": "block_out_channels",
    "layers_per_block": "layers_per_block",
    "latent_channels": "latent_channels",
    "num_vq_embeddings": "codebook_size",
    "vq_embed_dim": "dim",
    "mid_block_add_attention": "attention",
}


@register
class Amused(GridVq):
    """Codes by Euclidean distance over the features of a diffusers VQModel of plain blocks."""

    black = 0.0

    def __init__(
        self,
        *,
        block_out_channels: Sequence[int] = (128, 256, 256, 512, 768),
        layers_per_block: int = 2,
        latent_channels: int = 64,
        dim: int | None = 64,
        codebook_size: int = 8192,
        attention: bool = False,
        preprocess: dict[str, Any] | None = None,
    ) -> None:
        """block_out_channels: width of each level; dim: width of a code, None = latent_channels.

        attention: in the middle of encoder and decoder.
        """
        width = latent_channels if dim is None else dim
        super().__init__(
            "amused",
            patch=2 ** (len(block_out_channels) - 1),
            dim=width,
            codebook_sizes=(codebook_size,),
            preprocess=preprocess,
        )
        network = vq_model(
            block_out_channels, layers_per_block, latent_channels, width, mid_block_add_attention=attention
        )
        self.encoder, self.quant_conv = network.encoder, network.quant_conv
        self.quantize = Codebook(codebook_size, width, normalise=False)
        self.post_quant_conv, self.decoder = network.post_quant_conv, network.decoder

    @classmethod
    def rename_settings(cls, stored: Mapping[str, Any]) -> dict[str, Any]:
        """The config.json of a diffusers VQModel as settings. Raises: ValueError for blocks of another kind."""
        if not is_foreign(stored):
            return dict(stored)
        blocks = {*stored.get("down_block_types", ()), *stored.get("up_block_types", ())}
        if stored.get("_class_name") != "VQModel" or not blocks <= {"DownEncoderBlock2D", "UpDecoderBlock2D"}:
            raise ValueError(
                "amused: expected the config of a diffusers VQModel of plain blocks, got "
                f"{stored.get('_class_name')} of {sorted(blocks)}"
            )
        return {ours: stored[theirs] for theirs, ours in _SETTINGS.items() if theirs in stored}
