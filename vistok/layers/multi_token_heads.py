"""Multi-token prediction as concept-aware fine-tuning uses it (CAFT, arXiv:2506.07833, section 2).

Head k = 1..n-1 predicts the token k places behind the next one: a transformer block of its own reads what the model's
last layer reads, the final norm and the unembedding are shared. The heads learn first, the model frozen, by
sum_k gamma^k L_k; then model and heads are tuned by L_0 + c(s) beta sum_k gamma^k L_k, and only the model is kept.
c falls as sin(pi/2 (1 - s)) over the run, s its done part ("rsine"); beta 0.01 and gamma 0.8 are the authors' code's.
B items, S positions, W width.
"""

import math
from collections.abc import Callable, Sequence
from functools import cache

import torch
from torch import Tensor, nn

from vistok.layers.transformer import Block

SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda done: 1.0,
    "linear": lambda done: done,
    "sine": lambda done: math.sin(math.pi / 2 * done),
    "rsine": lambda done: math.sin(math.pi / 2 * (1 - done)),
}


class MultiTokenHeads(nn.Module):
    """Blocks that look ahead; what comes out goes through the model's own norm and unembedding."""

    def __init__(self, width: int, heads: int, ahead: int) -> None:
        """ahead: how many tokens behind the next one are predicted. Raises: ValueError below 1."""
        super().__init__()
        if ahead < 1:
            raise ValueError(f"multi-token heads: expected ahead >= 1, got {ahead}")
        self.ahead = ahead
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(ahead))

    def forward(self, hidden: Tensor) -> list[Tensor]:
        """hidden [B, S, W], causal -> for k = 1..ahead [B, S, W], where position i sees none behind i."""
        mask = _causal(hidden.shape[1]).to(hidden.device)
        return [block(hidden, mask) for block in self.blocks]


def shifted(values: Tensor, places: int, fill: int = -1) -> Tensor:
    """Targets [B, S, ...] moved `places` to the front along S, `fill` behind the last: what head `places` predicts."""
    moved = torch.full_like(values, fill)
    if places < values.shape[1]:
        moved[:, : values.shape[1] - places] = values[:, places:]
    return moved


def multi_token_loss(
    losses: Sequence[Tensor], *, beta: float = 0.01, gamma: float = 0.8, schedule: str = "rsine", done: float = 0.0
) -> Tensor:
    """L_0 + c(done) beta sum_k gamma^k L_k of mean losses, the next token's first; done: part of the run in [0, 1].

    Raises: ValueError for no losses, an unknown schedule, or a part outside [0, 1].
    """
    if not losses or schedule not in SCHEDULES or not 0 <= done <= 1:
        raise ValueError(
            f"multi_token_loss: expected losses, a schedule of {', '.join(SCHEDULES)} and done in [0, 1], got "
            f"{len(losses)} losses, {schedule!r} and {done}"
        )
    weight = SCHEDULES[schedule](done) * beta
    total = losses[0]
    for place, loss in enumerate(losses[1:], 1):
        total = total + weight * gamma**place * loss
    return total


@cache
def _causal(length: int) -> Tensor:
    return torch.ones(length, length, dtype=torch.bool).tril()[None, None]
