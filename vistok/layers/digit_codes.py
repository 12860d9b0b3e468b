"""Ids as digits of several small alphabets: FSQ's channels, or any mixed radix, for embedding tables and heads.

id = sum_q digit_q prod_{j<q} L_j, digit 0 fastest, as FSQ packs its levels (arXiv:2309.15505). A head says one
categorical distribution per digit, independent given its input: -log p(id) = -sum_q log p_q(digit_q). 64,000 codes of
vq_nano (levels 8, 8, 8, 5, 5, 5) so need 39 logits. Digit -1 is an absent one. Q digits, W width.
"""

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor, nn

from vistok.ops.check_ids import check_ids


def split_digits(ids: Tensor, sizes: Sequence[int]) -> Tensor:
    """Ids [...] int64 below prod(sizes) -> digits [..., Q] int64; -1 gives -1 in every digit.

    Raises: ValueError for other ids, or sizes that are not positive.
    """
    _check_sizes(sizes)
    check_ids("split_digits", ids, prod(sizes))
    digits, rest = [], ids
    for size in sizes:
        digits.append(rest % size)
        rest = rest.div(size, rounding_mode="floor")
    return torch.stack(digits, -1).where(ids.unsqueeze(-1) >= 0, -1)


def join_digits(digits: Tensor, sizes: Sequence[int]) -> Tensor:
    """Digits [..., Q] int64 of `split_digits` -> ids [...] int64; -1 where any digit is -1.

    Raises: ValueError if there are not Q digits, or one is out of its range.
    """
    _check_sizes(sizes)
    if not digits.ndim or digits.shape[-1] != len(sizes):
        raise ValueError(f"join_digits: expected digits [..., {len(sizes)}], got {list(digits.shape)}")
    total, place = torch.zeros_like(digits[..., 0]), 1
    for digit, size in zip(digits.unbind(-1), sizes, strict=True):
        check_ids("join_digits", digit, size)
        total, place = total + digit.clamp(min=0) * place, place * size
    return total.where((digits >= 0).all(-1), -1)


def digit_losses(logits: Tensor, digits: Tensor, sizes: Sequence[int]) -> Tensor:
    """-log p in nats [...] of digits [..., Q] under logits [..., sum(sizes)]; absent digits cost nothing.

    Raises: ValueError if the last axes do not fit the sizes.
    """
    if logits.shape[-1] != sum(sizes) or digits.shape[-1] != len(sizes):
        raise ValueError(
            f"digit_losses: expected logits [..., {sum(sizes)}] and digits [..., {len(sizes)}], got "
            f"{list(logits.shape)} and {list(digits.shape)}"
        )
    found = torch.zeros(digits.shape[:-1], dtype=logits.dtype, device=logits.device)
    for part, digit in zip(logits.split(list(sizes), -1), digits.unbind(-1), strict=True):
        picked = part.log_softmax(-1).gather(-1, digit.clamp(min=0).unsqueeze(-1)).squeeze(-1)
        found = found - picked.where(digit >= 0, 0.0)
    return found


def draw_digits(
    logits: Tensor, sizes: Sequence[int], temperature: float, generator: torch.Generator | None = None
) -> Tensor:
    """Digits [..., Q] drawn from logits [..., sum(sizes)] at a temperature, the likeliest ones at 0."""
    drawn = []
    for part in logits.split(list(sizes), -1):
        if temperature == 0:
            drawn.append(part.argmax(-1))
            continue
        chances = (part.float() / temperature).softmax(-1)
        flat = torch.multinomial(chances.reshape(-1, chances.shape[-1]), 1, generator=generator)
        drawn.append(flat.reshape(chances.shape[:-1]))
    return torch.stack(drawn, -1)


class DigitEmbedding(nn.Module):
    """The sum of one row per digit, each from the table of its alphabet."""

    def __init__(self, sizes: Sequence[int], width: int) -> None:
        """Raises: ValueError for sizes that are not positive."""
        super().__init__()
        _check_sizes(sizes)
        self.sizes = tuple(sizes)
        starts = [sum(sizes[:place]) for place in range(len(sizes))]
        self.table = nn.Embedding(sum(sizes), width)
        nn.init.normal_(self.table.weight, std=0.02)
        self.register_buffer("starts", torch.tensor(starts), persistent=False)

    def forward(self, digits: Tensor) -> Tensor:
        """digits [..., Q] int64, -1 = absent -> [..., W]; zeros where all are absent."""
        starts: Tensor = self.get_buffer("starts")
        rows = self.table((digits + starts).clamp(min=0))
        total: Tensor = rows.where(digits.unsqueeze(-1) >= 0, 0.0).sum(-2)
        return total


def _check_sizes(sizes: Sequence[int]) -> None:
    if not sizes or min(sizes) < 1:
        raise ValueError(f"digits: expected positive sizes of alphabets, got {list(sizes)}")
