"""The order of samples when few reason and many only generate perception tokens (AURORA, arXiv:2412.03548).

Indices count through both sets: 0..g-1 generate, g..g+r-1 reason.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.utils.data import Sampler

FRACTIONS = tuple(tenths / 10 for tenths in range(10, 0, -1))


class CurriculumSampler(Sampler[int]):
    """Epochs in one pass, less generation and more reasoning from epoch to epoch, as AURORA's code builds its file.

    sets: sizes (g, r). An epoch of `total` (g if not given) samples has `fractions[e]` of them drawn without
    replacement from the first set, then the whole second set as often as fits into the rest. order: "blocks" leaves
    it so, "shuffled_epoch" mixes each epoch. The paper's 20,000 and 1,000 give 200,000 samples, 90,000 of reasoning.
    """

    def __init__(
        self,
        sets: tuple[int, int],
        total: int | None = None,
        fractions: Sequence[float] = FRACTIONS,
        order: Literal["blocks", "shuffled_epoch"] = "blocks",
        seed: int = 0,
    ) -> None:
        """Raises: ValueError for empty sets, fractions outside 0..1, another order, or more draws than there are."""
        self.sets, self.total = sets, sets[0] if total is None else total
        self.fractions, self.order, self.seed = tuple(fractions), order, seed
        if min(sets) < 1 or order not in ("blocks", "shuffled_epoch"):
            raise ValueError(
                f"curriculum: expected two sets that hold something and order blocks or shuffled_epoch, got {sets} "
                f"and {order!r}"
            )
        if not self.fractions or not all(0 <= share <= 1 for share in self.fractions):
            raise ValueError(f"curriculum: expected fractions in 0..1, got {list(self.fractions)}")
        if max(self.generating) > sets[0]:
            raise ValueError(
                f"curriculum: expected at most {sets[0]} draws of generation an epoch, got {max(self.generating)}; "
                "lower total"
            )

    @property
    def generating(self) -> list[int]:
        """Samples of generation in each epoch, int(total * fraction) as in the authors' code."""
        return [int(self.total * share) for share in self.fractions]

    @property
    def reasoning(self) -> list[int]:
        """Samples of reasoning in each epoch."""
        return [(self.total - count) // self.sets[1] * self.sets[1] for count in self.generating]

    def __len__(self) -> int:
        return sum(self.generating) + sum(self.reasoning)

    def __iter__(self) -> Iterator[int]:
        for epoch in range(len(self.fractions)):
            yield from self.epoch(epoch).tolist()

    def epoch(self, number: int) -> Tensor:
        """The indices of one epoch, int64; they depend on the seed and its number alone."""
        draw = torch.Generator().manual_seed(self.seed * 1_000_003 + number)
        drawn = torch.randperm(self.sets[0], generator=draw)[: self.generating[number]]
        again = torch.arange(self.sets[0], sum(self.sets)).repeat(self.reasoning[number] // self.sets[1])
        indices = torch.cat((drawn, again))
        return indices if self.order == "blocks" else indices[torch.randperm(len(indices), generator=draw)]


def task_probabilities(
    difficulties: Sequence[float], step: int, steps: int, *, tau: float = 1.0, growth: float = 9.0, sign: int = 1
) -> list[float]:
    """p(task, s) = softmax(-sign d / tau(s)), tau(s) = tau / (1 + growth s / S), the paper's equation for sign 1.

    As printed a falling tau puts ever more weight on the easiest task, against what the paper says it is for; sign -1
    puts it on the hardest. Values of tau, growth and d are not published. Raises: ValueError for another sign, no
    task, or steps below 1.
    """
    if sign not in (-1, 1) or not difficulties or steps < 1 or tau <= 0:
        raise ValueError(
            f"schedule: expected tasks, sign 1 or -1, steps >= 1 and tau > 0, got {len(difficulties)} tasks, {sign}, "
            f"{steps}, {tau}"
        )
    now = tau / (1 + growth * step / steps)
    scores = [-sign * difficulty / now for difficulty in difficulties]
    highest = max(scores)
    weights = [math.exp(score - highest) for score in scores]
    return [weight / sum(weights) for weight in weights]


class SoftmaxSampler(Sampler[int]):
    """`steps` indices over sets of given sizes, the set of each drawn by `task_probabilities`, the place uniformly."""

    def __init__(
        self,
        sets: Sequence[int],
        difficulties: Sequence[float],
        steps: int,
        *,
        tau: float = 1.0,
        growth: float = 9.0,
        sign: int = 1,
        seed: int = 0,
    ) -> None:
        """Raises: ValueError if sets are empty or not as many as difficulties; as `task_probabilities`."""
        if len(sets) != len(difficulties) or not sets or min(sets) < 1:
            raise ValueError(f"schedule: expected one difficulty for each set, got {list(sets)} and {difficulties}")
        task_probabilities(difficulties, 0, steps, tau=tau, growth=growth, sign=sign)
        self.sets, self.difficulties, self.steps, self.seed = tuple(sets), tuple(difficulties), steps, seed
        self.tau, self.growth, self.sign = tau, growth, sign

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[int]:
        draw = torch.Generator().manual_seed(self.seed)
        for step in range(self.steps):
            weights = task_probabilities(
                self.difficulties, step, self.steps, tau=self.tau, growth=self.growth, sign=self.sign
            )
            task = int(torch.multinomial(torch.tensor(weights), 1, generator=draw))
            place = int(torch.randint(self.sets[task], (), generator=draw))
            yield sum(self.sets[:task]) + place
