"""The mean of a quantity over the vectors of all processes, where each process holds the mean over its own."""

import torch
from torch import Tensor, distributed


def process_mean(mean: Tensor, count: int) -> Tensor:
    """mean [...] of this process over `count` vectors -> [...] over those of all, the same on every process.

    mean = sum_r n_r m_r / sum_r n_r. Its gradient reaches this process's own part times the number of processes, so
    that averaging gradients over them, as DistributedDataParallel does, gives the gradient of the whole. One process:
    `mean` itself. With several, all must call it the same number of times.
    """
    if not (distributed.is_available() and distributed.is_initialized()) or distributed.get_world_size() == 1:
        return mean
    total = torch.tensor(float(count), device=mean.device, dtype=mean.dtype)
    distributed.all_reduce(total)
    part = mean * (count / total.clamp(min=1))
    whole = part.detach().clone()
    distributed.all_reduce(whole)
    scaled = part * distributed.get_world_size()
    return whole + (scaled - scaled.detach())
