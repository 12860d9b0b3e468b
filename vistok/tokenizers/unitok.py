"""UniTok: A Unified Tokenizer for Visual Generation and Understanding (arXiv:2502.20321), 16x16 pixels a token.

Multi-codebook quantization: the 64 channels of a vector are cut into 8 parts, each with a codebook of 4096 entries of
its own, k_i = argmax_k cos(z_i, e_ik), given out at length 1. ViTamin-L encodes and its mirror decodes, pixels in
[-1, 1]; attention projects to the codes and back. What the authors' file holds beside it (text tower, CLIP head, usage
counts) has no part in tokens and is left out. B images, N grid cells, D width of all codes, Q codebooks.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vistok.layers.codebook import Codebook
from vistok.layers.grid_vq import GridVq
from vistok.layers.vitamin import AttentionProjection, ViTaminDecoder, ViTaminEncoder
from vistok.protocols import Quantized
from vistok.registry import register

_CLIP = ("text_encoder.", "fc_norm.", "projection.", "logit_scale")


class _Codebooks(nn.Module):
    def __init__(self, books: int, codes: int, width: int) -> None:
        super().__init__()
        self.codebooks = nn.ModuleList(Codebook(codes, width, normalise=True) for _ in range(books))

    def forward(self, z: Tensor) -> Quantized:
        """z [B, N, D] -> Quantized with ids [B, N, Q]; loss and stats are the codebooks' means."""
        parts = z.chunk(len(self.codebooks), -1)
        found: list[Quantized] = [book(part) for book, part in zip(self.codebooks, parts, strict=True)]
        stats = {name: torch.stack([one.stats[name] for one in found]).mean() for name in found[0].stats}
        return Quantized(
            torch.cat([one.embeds for one in found], -1),
            torch.stack([one.indices for one in found], -1),
            torch.stack([one.loss for one in found]).mean(),
            stats,
        )

    def lookup(self, ids: Tensor) -> Tensor:
        """ids [B, N, Q] int64 -> codes [B, N, D] float32."""
        books: Any = self.codebooks
        return torch.cat([book.lookup(ids[..., i]) for i, book in enumerate(books)], -1)


@register
class UniTok(GridVq):
    """Several codes a token, each from a codebook of its own."""

    weights_under = ("trainer", "unitok")

    def __init__(
        self,
        *,
        widths: Sequence[int] = (160, 320, 1024),
        depths: Sequence[int] = (2, 4),
        layers: int = 31,
        heads: int = 16,
        dim: int = 64,
        codebooks: int = 8,
        codebook_size: int = 4096,
        preprocess: dict[str, Any] | None = None,
    ) -> None:
        """widths: of the first and second stage of convolutions and of the ViT; depths: blocks of the two stages.

        dim: width of all codes together; codebook_size: entries of each. Raises: ValueError for sizes that do not fit.
        """
        if dim % codebooks:
            raise ValueError(f"unitok: expected dim to be a multiple of codebooks={codebooks}, got {dim}")
        super().__init__(
            "unitok", patch=16, dim=dim, codebook_sizes=(codebook_size,) * codebooks, preprocess=preprocess
        )
        self.encoder = ViTaminEncoder(widths, depths, layers, heads)
        self.quant_proj = AttentionProjection(widths[-1], dim)
        self.quantize = _Codebooks(codebooks, codebook_size, dim // codebooks)
        self.post_quant_proj = AttentionProjection(dim, widths[-1])
        self.decoder = ViTaminDecoder(widths, depths, layers, heads)

    def features(self, pixels: Tensor) -> Tensor:
        """pixels [B, 3, H, W] in [-1, 1] -> vectors to quantize [B, D, h, w]."""
        return _projected(self.quant_proj, self.encoder(pixels))

    def pixels(self, embeds: Tensor) -> Tensor:
        """embeds [B, D, h, w] -> pixels [B, 3, H, W] around [-1, 1], not clamped."""
        pixels: Tensor = self.decoder(_projected(self.post_quant_proj, embeds))
        return pixels

    def rename_keys(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The authors' file without its CLIP half, counts of used codes and a position embedding of zeros."""
        return {
            name.replace("quantizer.codebooks.", "quantize.codebooks.").replace(
                ".codebook.weight", ".embedding.weight"
            ): value
            for name, value in tensors.items()
            if not (name.startswith(_CLIP) or name.endswith(".vocab_usage") or _is_zero_position(name, value))
        }


def _projected(projection: nn.Module, grid: Tensor) -> Tensor:
    out: Tensor = projection(grid.flatten(2).transpose(1, 2)).transpose(1, 2).unflatten(2, grid.shape[2:])
    return out


def _is_zero_position(name: str, value: Tensor) -> bool:
    # Never trained, and always zero: one that is not belongs to a model of another kind, and stays to be refused.
    return name == "encoder.pos_embed" and (value.is_meta or not bool(value.any()))
