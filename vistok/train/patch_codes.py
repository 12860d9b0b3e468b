"""Pixels of square patches as codes: k-means of patches, learned in seconds, for pictures as simple as scenes.

No net at all: a code is a mean patch, so what is decoded is blocky but true in colour and outline. B images, K codes,
N = (side / patch)^2 tokens, D = 3 patch^2 numbers of a patch.
"""

from typing import Any

import torch
from torch import Tensor, nn

from vistok.registry import create
from vistok.tokens import TokenSpec, TokenTensor


class PatchCodes:
    """Codebook [K, D] of patches of side x side images."""

    def __init__(self, quantizer: Any, side: int, patch: int) -> None:
        self.quantizer, self.side, self.patch = quantizer.eval(), side, patch

    @classmethod
    def learn(cls, images: Tensor, codes: int, patch: int, *, rounds: int = 60, batch: int = 128, seed: int = 0) -> Any:
        """From images [S, 3, side, side] in [0, 1]: k-means on one batch, then averages over `rounds` more."""
        draw = torch.Generator().manual_seed(seed)
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(seed)  # the quantizer draws its start from torch's own generator
            quantizer: Any = create("quantizer", "vq", dim=3 * patch**2, codebook_size=codes)
            made = cls(quantizer, images.shape[-1], patch)
            quantizer.train()
            for _ in range(rounds):
                chosen = torch.randint(len(images), (batch,), generator=draw)
                quantizer(made.patches(images[chosen]).flatten(0, 1))
        quantizer.eval()
        return made

    @property
    def codebook(self) -> Tensor:
        """[K, D] float32."""
        codes: Tensor = self.quantizer.codebook
        return codes

    def patches(self, images: Tensor) -> Tensor:
        """images [B, 3, side, side] -> [B, N, D], row after row."""
        return nn.functional.pixel_unshuffle(images, self.patch).flatten(2).transpose(1, 2)

    @torch.no_grad()
    def encode(self, images: Tensor) -> TokenTensor:
        """images [B, 3, side, side] in [0, 1] -> indices [B, N]."""
        cells = self.side // self.patch
        spec = TokenSpec("patch_codes", 0, (len(self.codebook),), (cells, cells), self.patch, (self.side, self.side))
        return TokenTensor(spec=spec, indices=self.quantizer(self.patches(images)).indices)

    @torch.no_grad()
    def decode(self, indices: Tensor) -> Tensor:
        """indices [B, N] -> images [B, 3, side, side] in [0, 1]."""
        cells = self.side // self.patch
        grid = self.quantizer.lookup(indices).transpose(1, 2).unflatten(2, (cells, cells))
        return nn.functional.pixel_shuffle(grid, self.patch).clamp(0, 1)
