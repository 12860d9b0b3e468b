"""Frechet distance of two feature clouds, each taken for a Gaussian (Heusel et al., arXiv:1706.08500, eq. 6).

|m1 - m2|^2 + Tr(S1 + S2 - 2 (S1 S2)^{1/2}), the trace of the root from the eigenvalues of S1^{1/2} S2 S1^{1/2}.
It is FID only with Inception features; with others name them ("Frechet distance, lite0 features").
"""

import torch
from torch import Tensor


def frechet_distance(first: Tensor, second: Tensor) -> Tensor:
    """Features [N, D] and [M, D], N and M >= 2 -> [] float64.

    Defined with fewer images than features (no ridge: negative rounding is clamped), but then far above the value of
    the full distributions: compare it only between runs on the same images. Raises: ValueError naming the shapes.
    """
    if first.ndim != 2 or second.ndim != 2 or first.shape[1] != second.shape[1] or min(len(first), len(second)) < 2:
        raise ValueError(
            f"frechet_distance: expected features [N, D] and [M, D] of at least 2 images, got {list(first.shape)} and "
            f"{list(second.shape)}"
        )
    first, second = first.double(), second.double()
    if len(first) + len(second) < first.shape[1]:  # the distance only needs the subspace that the features span
        basis = torch.linalg.qr(torch.cat([first, second]).T).Q
        first, second = first @ basis, second @ basis
    cov_first, cov_second = torch.cov(first.T).reshape(first.shape[1], -1), torch.cov(second.T)
    cov_second = cov_second.reshape_as(cov_first)
    values, vectors = torch.linalg.eigh(cov_first)
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    cross = torch.linalg.eigvalsh(root @ cov_second @ root).clamp(min=0).sqrt().sum()
    shift = (first.mean(0) - second.mean(0)).square().sum()
    distance: Tensor = shift + cov_first.trace() + cov_second.trace() - 2 * cross
    return distance.clamp(min=0)
