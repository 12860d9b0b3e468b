"""Fitting a linear head on standardised features, without a trace of it afterwards.

Features of unit length differ little from their mean, and few steps of any optimizer tell them apart then. With m and s
the mean and deviation of each feature, W (f - m) / s + b is a linear head on f again: W / s and b - W m / s.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from vistok.layers.feature_head import FeatureHead


@contextmanager
def standardized(head: FeatureHead, features: Tensor) -> Iterator[None]:
    """Inside, `head` gets features standardised by the statistics of features [N, F], and its weights begin at zero.

    Outside, it is the same function of features as they are. A feature that does not vary is only centred.
    """
    mean, std = features.mean(0), features.std(0, correction=0)
    std = torch.where(std > 1e-6 * mean.abs().clamp(min=1e-3), std, 1.0)
    with torch.no_grad():
        head.weight.zero_()
        head.bias.zero_()
    handle = head.register_forward_pre_hook(lambda _, args: ((args[0] - mean) / std,))
    try:
        yield
    finally:
        handle.remove()
        kept = slice(None) if head.select_ids is None else head.select_ids
        with torch.no_grad():
            head.weight.div_(std[kept])
            head.bias.sub_(head.weight @ mean[kept])
