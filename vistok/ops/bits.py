"""Sign codes: bits to ids and back, and the entropies of binary codebooks without their 2^D tables."""

import torch
from torch import Tensor

BIT_ORDERS = ("msb", "lsb")
MAX_BITS = 62


def bit_weights(bits: int, order: str, device: torch.device | None = None) -> Tensor:
    """[bits] int64 value of each channel: "msb" = channel 0 counts most, "lsb" = channel 0 counts 1.

    Raises: ValueError for another order, or bits outside 1..62 (ids are int64).
    """
    if order not in BIT_ORDERS:
        raise ValueError(f"bit order: expected one of {BIT_ORDERS}, got {order!r}")
    if not 1 <= bits <= MAX_BITS:
        raise ValueError(f"bits: expected 1..{MAX_BITS} so that ids fit int64, got {bits}")
    weights = 2 ** torch.arange(bits, dtype=torch.int64, device=device)
    return weights.flip(0) if order == "msb" else weights


def pack_bits(bits: Tensor, order: str) -> Tensor:
    """bits [..., D] bool -> ids [...] int64."""
    return (bits * bit_weights(bits.shape[-1], order, bits.device)).sum(-1)


def unpack_bits(ids: Tensor, bits: int, order: str) -> Tensor:
    """ids [...] int64 -> [..., bits] bool."""
    return (ids.unsqueeze(-1) & bit_weights(bits, order, ids.device)) != 0


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
    Memory: N 2^(group/2) + 2^group floats per group.
    """
    total = logits.new_zeros(())
    if not len(logits):
        return total
    for part in torch.sigmoid(logits).split(group, dim=1):
        half = part.shape[1] // 2
        mean = _bit_table(part[:, :half]).T @ _bit_table(part[:, half:]) / len(part)
        total = total - torch.xlogy(mean, mean.clamp(min=1e-30)).sum()
    return total


def _bit_table(p: Tensor) -> Tensor:
    """p [N, d] chance of every bit -> [N, 2^d] chance of every bit string."""
    table = p.new_ones(len(p), 1)
    for bit in p.unbind(1):
        table = torch.cat([table * (1 - bit[:, None]), table * bit[:, None]], dim=1)
    return table
