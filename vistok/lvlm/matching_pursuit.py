"""Orthogonal matching pursuit: every vector as a sparse sum of anchor vectors.

r_0 = x; j_t = argmax_j |<a_j / |a_j|, r_{t-1}>|; w = argmin |x - sum_{j in S_t} w_j a_j|; r_t = x - sum w_j a_j
(Pati et al. 1993). "Training-Free Tokenizer Transplantation via Orthogonal Matching Pursuit" (arXiv:2506.06607) takes
w from a space in which old and new tokens both have a vector and sums the language model's rows with it; it uses 64
anchors for a vocabulary of words. n vectors, A anchors, d width, k anchors for each.
"""

import torch
from torch import Tensor


def matching_pursuit(vectors: Tensor, anchors: Tensor, count: int) -> Tensor:
    """vectors [n, d], anchors [A, d] -> weights [n, A] float64, at most `count` of each row not zero.

    A vector that is met before takes no more anchors. Raises: ValueError for shapes that do not fit, an anchor of
    zeros, or a count out of 1..A.
    """
    if vectors.ndim != 2 or anchors.ndim != 2 or vectors.shape[1] != anchors.shape[1]:
        raise ValueError(
            f"matching_pursuit: expected vectors [n, d] and anchors [A, d], got {list(vectors.shape)} and "
            f"{list(anchors.shape)}"
        )
    if not 1 <= count <= len(anchors):
        raise ValueError(f"matching_pursuit: expected 1..{len(anchors)} anchors for each vector, got {count}")
    vectors, anchors = vectors.double(), anchors.double()
    lengths = anchors.norm(dim=1)
    if bool((lengths == 0).any()):
        raise ValueError(f"matching_pursuit: expected anchors other than 0, anchor {int(lengths.argmin())} is")
    unit = anchors / lengths[:, None]
    residual, taken = vectors.clone(), vectors.new_zeros(len(vectors), len(anchors), dtype=torch.bool)
    axes = vectors.new_zeros(len(vectors), 0, vectors.shape[1])  # orthonormal, of the anchors taken so far
    met = 1e-9 * vectors.norm(dim=1)
    for _ in range(min(count, vectors.shape[1])):
        fit = (residual @ unit.T).abs().masked_fill(taken, -1)
        best = fit.argmax(1)
        direction = unit[best]
        for _ in range(2):  # once is not enough for orthogonality in floating point
            direction = direction - torch.einsum("nkd,nk->nd", axes, torch.einsum("nkd,nd->nk", axes, direction))
        length = direction.norm(dim=1)
        goes_on = (residual.norm(dim=1) > met) & (length > 1e-4)
        axis = (direction / length.clamp(min=1e-12)[:, None]).where(goes_on[:, None], 0)
        residual = residual - (residual * axis).sum(1, keepdim=True) * axis
        axes = torch.cat((axes, axis[:, None]), 1)
        taken[goes_on, best[goes_on]] = True
    return _least_squares(vectors, anchors, taken)


def _least_squares(vectors: Tensor, anchors: Tensor, taken: Tensor) -> Tensor:
    """Weights [n, A] of the best sum of the anchors that each vector has taken."""
    most = int(taken.sum(1).max()) if len(taken) else 0
    order = taken.to(torch.int8).sort(dim=1, descending=True, stable=True).indices[:, :most]
    used = taken.gather(1, order)
    basis = anchors[order] * used[..., None]
    gram = basis @ basis.transpose(1, 2) + torch.diag_embed((~used).to(basis))
    solved = torch.linalg.solve(gram, (basis @ vectors[..., None])).squeeze(-1) * used
    return vectors.new_zeros(len(vectors), len(anchors)).scatter(1, order, solved)
