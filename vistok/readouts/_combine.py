"""From what the queries read in each layer to the features of a head (VQT, arXiv:2212.03220).

B images, L layers, T queries, D width. The final feature comes first, then the layers in order; each group is divided
by its own length.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

EPS = 1e-12


def layer_features(queries: Sequence[Tensor | None], readout: str, weights: Tensor | None) -> list[Tensor | None]:
    """Per layer [B, T, D] or None, which stays None -> [B, T D] ("concat") or [B, D] ("mean", "wsum").

    weights [L, T]: of "wsum".
    """
    return [
        None if read is None else _of_layer(read, readout, None if weights is None else weights[place])
        for place, read in enumerate(queries)
    ]


def _of_layer(read: Tensor, readout: str, weights: Tensor | None) -> Tensor:
    if weights is not None:
        return torch.einsum("t,btd->bd", weights, read)
    return read.mean(1) if readout == "mean" else read.flatten(1)


def join_groups(groups: Sequence[Tensor | None], sizes: Sequence[int], normalize: bool) -> Tensor:
    """Groups [B, size] side by side [B, F]; zeros stand for a group that is None, which nobody looks at."""
    some = next(group for group in groups if group is not None)
    parts = [
        some.new_zeros(len(some), size)
        if group is None
        else nn.functional.normalize(group, dim=-1, eps=EPS)
        if normalize
        else group
        for group, size in zip(groups, sizes, strict=True)
    ]
    return torch.cat(parts, -1)
