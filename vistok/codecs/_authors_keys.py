"""Weight files of AiT's VQ-VAE, as their authors or PaliGemma's publish them, under the names of a codec."""

from collections.abc import Mapping

import torch
from torch import Tensor

_OWN, _CODES = "network.", "_vq_vae._embedding"


def under_network(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names below "network."; our own stay.

    A file without the moving averages, which only training needs, gets those that keep its codes: m = e, N = 1.
    """
    # Authors train in several processes, where torch puts "module." before every name.
    named = {f"{_OWN}{name.removeprefix('module.').removeprefix(_OWN)}": value for name, value in tensors.items()}
    codes = named.get(f"{_OWN}{_CODES}")
    if codes is not None:
        named.setdefault(f"{_OWN}_vq_vae._ema_w", codes.clone())
        named.setdefault(f"{_OWN}_vq_vae._ema_cluster_size", torch.ones(len(codes)))
    return named
