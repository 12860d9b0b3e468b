"""How far two classifiers' accuracies differ on the same images, with a bootstrap interval (Efron 1979).

Both the images and the runs (seeds) are drawn anew, with replacement, so that the interval holds the chance in which
images were tested on and that in how fits began. K tasks on N images each, S runs.
"""

from typing import NamedTuple

import torch
from torch import Tensor

_AT_ONCE = 100  # draws, for the memory


class Difference(NamedTuple):
    """mean: of accuracies, first minus second; low, high: ends of the interval."""

    mean: float
    low: float
    high: float


def paired_difference(
    first: Tensor, second: Tensor, *, level: float = 0.95, draws: int = 2000, seed: int = 0
) -> Difference:
    """first, second [K, S, N] or [S, N] bool, whether each image was right in each run, in the same order.

    The mean over tasks; an image keeps its place in all tasks, so that tasks on the same images stay paired.
    Raises: ValueError for other or unequal shapes, or a level outside 0..1.
    """
    if first.shape != second.shape or first.ndim not in (2, 3) or not first.numel() or not 0 < level < 1:
        raise ValueError(
            f"paired accuracy: expected [K, S, N] or [S, N] twice and 0 < level < 1, got {list(first.shape)}, "
            f"{list(second.shape)} and {level}"
        )
    gain = first.double() - second.double()
    if gain.ndim == 3:
        gain = gain.mean(0)
    runs, images = gain.shape
    draw = torch.Generator().manual_seed(seed)
    means = []
    for begin in range(0, draws, _AT_ONCE):
        count = min(_AT_ONCE, draws - begin)
        drawn_runs = torch.randint(runs, (count, runs), generator=draw)
        of_images = gain[drawn_runs].mean(1)
        drawn_images = torch.randint(images, (count, images), generator=draw)
        means.append(of_images.gather(1, drawn_images).mean(1))
    tail = (1 - level) / 2
    low, high = torch.cat(means).quantile(torch.tensor([tail, 1 - tail], dtype=torch.float64)).tolist()
    return Difference(float(gain.mean()), low, high)
