"""Group lasso over the inputs of a linear head, and the features that survive it (Head2Toe, arXiv:2201.03529).

A group is one feature: its weights to all C classes, a column of W [C, F].
"""

import torch
from torch import Tensor


def group_lasso(weight: Tensor) -> Tensor:
    """W [C, F] -> sum over features j of ||W[:, j]||_2, a scalar to add to the loss.

    The gradient of a column of zeros is zero. Raises: ValueError unless W is a matrix.
    """
    return feature_scores(weight).sum()


def feature_scores(weight: Tensor) -> Tensor:
    """W [C, F] -> ||W[:, j]||_2 per feature [F]. Raises: ValueError unless W is a matrix."""
    if weight.ndim != 2:
        raise ValueError(f"group_lasso: expected a head's weight [C, F], got {list(weight.shape)}")
    scores: Tensor = torch.linalg.vector_norm(weight, dim=0)
    return scores


def select_features(weight: Tensor, keep_frac: float) -> Tensor:
    """W [C, F] -> ids int64 of the floor(F * keep_frac) features with the largest scores, the largest first.

    Raises: ValueError unless W is a matrix and at least one feature is kept, and no more than there are.
    """
    scores = feature_scores(weight.detach())
    count = int(len(scores) * keep_frac)
    if not 1 <= count <= len(scores):
        raise ValueError(
            f"select_features: expected keep_frac that keeps 1 to {len(scores)} features, got {keep_frac} ({count})"
        )
    return scores.topk(count).indices
