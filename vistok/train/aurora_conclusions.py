"""Learn to read spans without a picture: which of some things has the largest or smallest code, or how many there are.

A stage of ours before AURORA's (arXiv:2412.03548). A chain's conclusion depends on its tokens alone, so it is learned
from made-up names and depths, in sequences of forty tokens where one with a picture has hundreds: question, chain with
drawn codes, answer; no loss on the codes. First what is easy: mostly two
things whose depths differ much, or short lists.
Positions leave room for visual tokens. A step follows from its number. B questions a step, T ids, V scores.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from vistok.lvlm.perception_texts import PerceptionQuestion
from vistok.train.made_up_conclusions import MadeUpConclusions
from vistok.train.metrics_log import append_row, last_row
from vistok.train.perception_adapter import AdapterOptimizers, PerceptionAdapter, resume_stage, write_stage
from vistok.train.step_loop import OnStep, run_steps

_EARLY_PAIRS, _PAIRS = 0.9, 0.4  # share of steps about two things, while contrasts shrink and then
_TEST_SEED = 1 << 32  # of questions that no step asks


@dataclass(frozen=True)
class Training:
    """One run; `out` is what `begin` of `vistok train aurora_generation` takes.

    codes, rank, start, asks: as of the runs that begin here. batch: questions of a step. pairs: steps over which
    questions become as hard as those of scenes; until then most of those about depths are about two things.
    copied: weight of the loss on words of the chain before the conclusion, which follow the order of the question.
    rate: of LoRA; head_rate, embedding_rate: of new rows. test_questions: made-up ones, asked at the end.
    """

    out: str
    codes: int = 16
    start: Literal["words", "codebook", "waves"] = "words"
    asks: Literal["depths", "counts"] = "depths"
    rank: int = 32
    batch: int = 64
    steps: int = 400
    pairs: int = 150
    copied: float = 0.1
    rate: float = 2e-3
    head_rate: float = 3e-3
    embedding_rate: float = 1e-3
    warmup: int = 20
    clip: float = 1.0
    bf16: bool = True
    test_questions: int = 400
    seed: int = 0
    threads: int = 0
    save_every: int = 50
    log_every: int = 10


def train(training: Training, on_step: OnStep | None = None) -> dict[str, float]:
    """Run a recipe; returns the last metrics, with the accuracy of conclusions from codes of new questions."""
    if training.threads:
        torch.set_num_threads(training.threads)
    trainer = Trainer(training)
    row = trainer.run(on_step)
    if "accuracy" not in row and training.test_questions:
        append_row(trainer.out / "metrics.jsonl", row | trainer.tested(training.test_questions))
    return last_row(trainer.out / "metrics.jsonl")


class Trainer:
    """Model, adapter, optimizer and step of one run; `run()` goes on from the last checkpoint in `out`."""

    def __init__(self, config: Training) -> None:
        self.config, self.out = config, Path(config.out)
        self.host = PerceptionAdapter(config.codes, config.rank, config.seed, config.start, config.asks)
        self.conclusions = MadeUpConclusions(self.host, copied=config.copied, bf16=config.bf16)
        self.optimizers = AdapterOptimizers(self.host, config)
        self.step, self.seconds = 0, 0.0

    def run(self, on_step: OnStep | None = None) -> dict[str, float]:
        """Go on from the last checkpoint to the last step, saving on the way; returns the last logged metrics."""
        return run_steps(self, on_step)

    def questions(self, step: int) -> Sequence[PerceptionQuestion]:
        """Those of a step."""
        config, rng = self.config, np.random.default_rng((self.config.seed, step))
        left = max(0.0, 1 - step / max(1, config.pairs))
        if config.asks == "counts":
            return self.host.texts.made_up(rng, config.batch, ease=left)
        pairs = rng.random() < (_EARLY_PAIRS if left else _PAIRS)
        return self.host.texts.made_up(rng, config.batch, 2 if pairs else 3, left if pairs else 0.0)

    def train_step(self) -> dict[str, float]:
        """One update; returns the loss, and which share of its conclusions named the right thing."""
        loss, right = self.conclusions.loss(self.questions(self.step))
        self.optimizers.update(loss, self.step)
        self.step += 1
        return {"loss": float(loss.detach()), "concluded": float(right.float().mean())}

    @torch.no_grad()
    def tested(self, count: int) -> dict[str, float]:
        """Share of right conclusions from given codes, equally many questions for every number of things."""
        found, texts = {}, self.host.texts
        for points in texts.made_up_points:
            rng = np.random.default_rng((_TEST_SEED, self.config.seed, points))
            asked = texts.made_up(rng, max(1, count // len(texts.made_up_points)), points)
            found[f"accuracy_{points}"] = float(self.conclusions.loss(asked)[1].float().mean())
        return found | {"accuracy": sum(found.values()) / len(found)}

    def save(self) -> None:
        """Write the checkpoint whole or not at all."""
        write_stage(self)

    def resume(self) -> None:
        """Go on from `out/last.pt` if there is one."""
        resume_stage(self)
