"""Entropies of sign codes by their bits, without the table of all 2^D codes."""

import torch
from torch import Tensor

from vistok.ops.process_mean import process_mean


def binary_entropy(logits: Tensor) -> Tensor:
    """Entropy in nats of a bit that is 1 with probability sigmoid(logit), elementwise."""
    log_sigmoid = torch.nn.functional.logsigmoid
    return -(torch.sigmoid(logits) * log_sigmoid(logits) + torch.sigmoid(-logits) * log_sigmoid(-logits))


def sample_code_entropy(logits: Tensor) -> Tensor:
    """Mean over N of the entropy in nats over all 2^D sign codes: logits [N, D] of each bit -> [], 0 if N is 0.

    Exact: softmax over sign codes of a score that is linear in the bits factorises into the bits.
    """
    return binary_entropy(logits).sum() / max(len(logits), 1)


def mean_code_entropy(logits: Tensor, group: int) -> Tensor:
    """Entropy in nats of the mean distribution over sign codes: logits [N, D] of each bit -> [], 0 if N is 0.

    Exact when D <= group; otherwise the sum over groups of at most `group` bits, an upper bound.
    The mean is over the vectors of all processes, all of which must call it.
    Memory: N 2^(group/2) + 2^group floats per group.
    """
    total, count = logits.new_zeros(()), len(logits)
    for part in torch.sigmoid(logits).split(group, dim=1):
        half = part.shape[1] // 2
        mean = _bit_table(part[:, :half]).T @ _bit_table(part[:, half:]) / max(count, 1)
        mean = process_mean(mean, count)
        total = total - torch.xlogy(mean, mean.clamp(min=1e-30)).sum()
    return total


def _bit_table(p: Tensor) -> Tensor:
    """p [N, d] chance of every bit -> [N, 2^d] chance of every bit string."""
    table = p.new_ones(len(p), 1)
    for bit in p.unbind(1):
        table = torch.cat([table * (1 - bit[:, None]), table * bit[:, None]], dim=1)
    return table
