"""The continuous image tokenizers of Cosmos (arXiv:2501.03575): 8x8 or 16x16 pixels a token, 16 channels.

The networks of the discrete ones with nothing between them: no codes, no distribution. Pixels in [-1, 1]. Published as
TorchScript, `encoder.jit` and `decoder.jit` in one folder: read with `trust=True`, for their tensors only.
B images, N = h*w tokens, D channels.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vistok.protocols import Quantized
from vistok.registry import register
from vistok.tokenizers.cosmos_di import CosmosNets


class _AsTheyAre(nn.Module):
    """Vectors [B, N, D] in the place of codes."""

    def forward(self, z: Tensor) -> Quantized:
        nothing: Any = None
        return Quantized(z.float(), nothing, torch.zeros((), device=z.device), {})


@register
class CosmosCI(CosmosNets):
    """Convolutional features over wavelets, deterministic."""

    def __init__(
        self,
        *,
        patch: int = 16,
        dim: int = 16,
        ch: int = 128,
        ch_mult: Sequence[int] = (2, 4, 4),
        num_res_blocks: int = 2,
        z_channels: int = 16,
        haar_levels: int = 2,
        preprocess: dict[str, Any] | None = None,
    ) -> None:
        """patch: pixels of a token's side, of which `haar_levels` halvings are the transform's; dim: channels.

        Raises: ValueError if patch is no power of two, or of more halvings than there are levels of the network.
        """
        super().__init__(
            "cosmos_ci",
            patch=patch,
            dim=dim,
            codebook_sizes=(),
            widths=[ch * factor for factor in (1, *ch_mult)],
            blocks=num_res_blocks,
            z_channels=z_channels,
            haar_levels=haar_levels,
            preprocess=preprocess,
        )
        self.quantize = _AsTheyAre()
