"""Weight files of AiT's VQ-VAE, as their authors or PaliGemma's publish them, under the names of a codec."""

from collections.abc import Mapping

import torch
from torch import Tensor

_CODES = "_vq_vae._embedding"


def under_network(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names below "network."; our own stay.

    A file without the moving averages, which only training needs, gets those that keep its codes: m = e, N = 1.
    """
    named = {name if name.startswith("network.") else f"network.{name}": value for name, value in tensors.items()}
    codes = named.get(f"network.{_CODES}")
    if codes is not None:
        named.setdefault("network._vq_vae._ema_w", codes.clone())
        named.setdefault("network._vq_vae._ema_cluster_size", torch.ones(len(codes)))
    return named
