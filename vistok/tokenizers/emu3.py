"""The vision tokenizer of Emu3 (arXiv:2409.18869): 8x8 pixels a token, 32768 codes of width 4, pixels in [-1, 1].

A video tokenizer that makes one frame of codes of four frames of pixels; the network is transformers' Emu3VQVAE. As its
authors do, a still image is given as four equal frames, and of the four decoded frames the first is the image.
B images, F frames, D code width.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from vistok.layers.codebook import Codebook
from vistok.layers.foreign_keys import part_of
from vistok.layers.grid_vq import GridVq, is_foreign
from vistok.registry import register

try:
    from transformers.models.emu3.configuration_emu3 import Emu3VQVAEConfig
    from transformers.models.emu3.modeling_emu3 import Emu3VQVAE
except ModuleNotFoundError as error:
    raise ImportError("the tokenizer emu3 needs the extra: pip install 'vistok[lvlm]' (transformers)") from error

_ATTENTION = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "proj_out": "out_proj"}
_SETTINGS = {
    "ch": "base_channels",
    "ch_mult": "channel_multiplier",
    "num_res_blocks": "num_res_blocks",
    "attn_resolutions": "attention_levels",
    "z_channels": "latent_channels",
    "embed_dim": "dim",
    "codebook_size": "codebook_size",
    "temporal_downsample_factor": "frames",
}


@register
class Emu3(GridVq):
    """Codes by Euclidean distance over the features of four equal frames."""

    def __init__(
        self,
        *,
        base_channels: int = 256,
        channel_multiplier: Sequence[int] = (1, 2, 2, 4),
        num_res_blocks: int = 2,
        attention_levels: Sequence[int] = (3,),
        latent_channels: int = 4,
        dim: int = 4,
        codebook_size: int = 32768,
        frames: int = 4,
        preprocess: dict[str, Any] | None = None,
    ) -> None:
        """base_channels: width of the finest level, times `channel_multiplier` at each; dim: width of a code.

        attention_levels: which have attention, as in the middle, so they must be of the last level's width. frames:
        pixel frames per frame of codes, a power of two.
        """
        super().__init__(
            "emu3",
            patch=2 ** (len(channel_multiplier) - 1),
            dim=dim,
            codebook_sizes=(codebook_size,),
            preprocess=preprocess,
        )
        self.frames = frames
        network: Any = Emu3VQVAE(
            Emu3VQVAEConfig(
                base_channels=base_channels,
                channel_multiplier=list(channel_multiplier),
                num_res_blocks=num_res_blocks,
                attn_resolutions=list(attention_levels),
                hidden_size=base_channels * channel_multiplier[-1],
                latent_channels=latent_channels,
                embed_dim=dim,
                codebook_size=1,
                temporal_downsample_factor=frames,
            )
        )
        self.encoder, self.quant_conv = network.encoder, network.quant_conv
        self.quantize = Codebook(codebook_size, dim, normalise=False)
        self.post_quant_conv, self.decoder = network.post_quant_conv, network.decoder

    def features(self, pixels: Tensor) -> Tensor:
        """pixels [B, 3, H, W] in [-1, 1] -> vectors to quantize [B, D, h, w]."""
        video = pixels[:, None].repeat(1, self.frames, 1, 1, 1)
        features: Tensor = self.quant_conv(self.encoder(video).transpose(1, 2))
        return features[:, :, 0]

    def pixels(self, embeds: Tensor) -> Tensor:
        """embeds [B, D, h, w] -> the first frame [B, 3, H, W], not clamped."""
        codes = embeds[:, :, None]
        given = self.post_quant_conv(codes)
        video: Tensor = self.decoder(given.transpose(1, 2), codes.transpose(1, 2))
        return video[:: self.frames]

    def rename_keys(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Of a whole model the tokenizer only; the names of the authors' Emu3-VisionTokenizer to Emu3VQVAE's."""
        own = part_of(tensors, "model.vqmodel.", "vqmodel.")
        return dict(_renamed(name, value) for name, value in own.items())

    @classmethod
    def rename_settings(cls, stored: Mapping[str, Any]) -> dict[str, Any]:
        """The config.json of Emu3-VisionTokenizer as settings; that of a whole model says nothing of the tokenizer."""
        if not is_foreign(stored):
            return dict(stored)
        return {ours: stored[theirs] for theirs, ours in _SETTINGS.items() if theirs in stored and "ch" in stored}


def _renamed(name: str, value: Tensor) -> tuple[str, Tensor]:
    name = re.sub(r"^encoder\.down\.", "encoder.down_block.down.", name)
    name = re.sub(r"^decoder\.up\.", "decoder.up_block.up.", name)
    name = re.sub(r"^(encoder|decoder)\.mid\.", r"\1.middle_block.", name)
    name = re.sub(r"\.attn\.(\d+)\.norm\.", r".attn_norms.\1.", name).replace(".attn_1.norm.", ".attn_norm.")
    found = re.match(r"(.*\.(?:attn\.\d+|attn_1))\.(q|k|v|proj_out)\.(weight|bias)$", name)
    if found is None:
        return name, value
    return f"{found[1]}.{_ATTENTION[found[2]]}.{found[3]}", value.flatten(1) if value.ndim == 4 else value
