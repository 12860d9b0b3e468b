"""Ids of 2^D codes as several ids of fewer bits, as Open-MAGVIT2's generator predicts them (arXiv:2409.04410, 3.2).

id = sum_i part_i 2^(b_0 + ... + b_{i-1}): the first part holds the lowest b_0 bits, and with bit order "lsb" those of
the first channels. Its released generators use b = (6, 12) for D = 18, its class defaults to (9, 9).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from vistok.ops.check_ids import check_ids
from vistok.ops.lfq import MAX_BITS


def split_ids(indices: Tensor, bits: Sequence[int]) -> Tensor:
    """Ids [...] int64 below 2^sum(bits) -> parts [..., len(bits)] int64; -1 (no token) gives -1 in every part.

    Raises: ValueError for other ids, or bits that are not positive or more than 62 together.
    """
    starts = _starts("split_ids", bits)
    check_ids("split_ids", indices, 2 ** sum(bits))
    parts = [(indices >> start) & (2**width - 1) for start, width in zip(starts, bits, strict=True)]
    return torch.stack(parts, -1).where(indices.unsqueeze(-1) >= 0, -1)


def join_ids(parts: Tensor, bits: Sequence[int]) -> Tensor:
    """Parts [..., len(bits)] int64 of `split_ids` -> ids [...] int64; -1 where any part is -1.

    Raises: ValueError if there are not len(bits) parts, one is out of its range, or for bits as `split_ids`.
    """
    starts = _starts("join_ids", bits)
    if not parts.ndim or parts.shape[-1] != len(bits):
        raise ValueError(f"join_ids: expected parts [..., {len(bits)}], got {list(parts.shape)}")
    total = torch.zeros_like(parts[..., 0])
    for part, start, width in zip(parts.unbind(-1), starts, bits, strict=True):
        check_ids("join_ids", part, 2**width)
        total = total + (part.clamp(min=0) << start)
    return total.where((parts >= 0).all(-1), -1)


def _starts(owner: str, bits: Sequence[int]) -> list[int]:
    if not bits or min(bits) < 1 or sum(bits) > MAX_BITS:
        raise ValueError(f"{owner}: expected positive numbers of bits, at most {MAX_BITS} together, got {list(bits)}")
    return [sum(bits[:place]) for place in range(len(bits))]
