"""Nearest codebook entry of every vector, without the N x K matrix.

k = argmin_k ||x - e_k||^2 = argmin_k (||e_k||^2 / 2 - x.e_k), ties to the lowest k. N vectors, K codes, D width.
"""

import torch
from torch import Tensor

_ROWS, _CODES = 1024, 4096


def nearest_code(x: Tensor, codebook: Tensor, metric: str = "l2") -> Tensor:
    """Index of the nearest code: x [..., D], codebook [K, D] -> [...] int64.

    metric: "l2" (Euclidean), "cosine" (largest cosine similarity) or "dot" (largest dot product). Computed in float32,
    or in float64 for float64 inputs. Raises: ValueError if shapes disagree, K is 0 or the metric is unknown.
    """
    if codebook.ndim != 2 or not len(codebook) or x.shape[-1] != codebook.shape[1]:
        raise ValueError(
            f"nearest_code: expected x [..., D] and codebook [K, D], K > 0, got {list(x.shape)} and "
            f"{list(codebook.shape)}"
        )
    if metric not in ("l2", "cosine", "dot"):
        raise ValueError(f"nearest_code: expected metric 'l2', 'cosine' or 'dot', got {metric!r}")
    with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        exact = torch.float64 if x.dtype == torch.float64 else torch.float32
        rows, codes = x.reshape(-1, x.shape[-1]).to(exact), codebook.to(exact)
        if metric == "cosine":
            codes = torch.nn.functional.normalize(codes, dim=1)
        bias = codes.square().sum(1) / 2 if metric == "l2" else codes.new_zeros(len(codes))
        if not len(rows):
            return torch.empty(x.shape[:-1], dtype=torch.int64, device=x.device)
        return torch.cat([_nearest(part, codes, bias) for part in rows.split(_ROWS)]).reshape(x.shape[:-1])


def _nearest(rows: Tensor, codes: Tensor, bias: Tensor) -> Tensor:
    best = index = None
    for start in range(0, len(codes), _CODES):
        tile = slice(start, start + _CODES)
        score, found = torch.addmm(bias[tile], rows, codes[tile].T, alpha=-1).min(dim=1)
        if best is None or index is None:
            best, index = score, found
            continue
        nearer = score < best  # strict: an equal score in a later tile does not win
        best, index = torch.where(nearer, score, best), torch.where(nearer, found + start, index)
    assert index is not None
    return index
