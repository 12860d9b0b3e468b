"""How much the start of new rows matters: held-out loss after few steps, for each start and seed."""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

from vistok.train.image_word_starts import STARTS
from vistok.train.image_words import Trainer, Training


class StartRow(NamedTuple):
    """Held-out loss when the vocabulary joins, and `steps` steps later."""

    start: str
    seed: int
    steps: int
    before: float
    after: float


def start_table(
    training: Training, starts: Sequence[str] = STARTS, seeds: Sequence[int] = (0, 1, 2), steps: int = 100
) -> Iterator[StartRow]:
    """The base model is trained once; rows, adapter and batches follow from each seed, the same for all starts."""
    trainer = Trainer(training)
    while trainer.step < training.base_steps:
        trainer.train_step()
    for seed in seeds:
        for start in starts:
            one = copy.deepcopy(trainer)
            one.config = replace(training, start=start, seed=seed, steps=training.base_steps + steps)
            one.attach()
            before = one.held_out_losses()["held_out_loss"]
            for _ in range(steps):
                one.train_step()
            yield StartRow(start, seed, steps, before, one.held_out_losses()["held_out_loss"])
