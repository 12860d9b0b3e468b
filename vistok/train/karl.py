"""Training of KARL: a plain torch loop that resumes to the bit.

Stage "distillation" teaches what the frozen base tokenizer says (a pixel base: the pixels), stage "tuning" trains all
of it on pixels, with perceptual and adversarial terms. Every draw of a step comes from (seed, step), so the state is
weights, average, optimizers, the distribution of requested errors, and the step.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from vistok.data.crops import CropSampler
from vistok.registry import create
from vistok.train.augment import augmented
from vistok.train.checkpoint import read_state, write_state
from vistok.train.export import write_half
from vistok.train.karl_losses import EpsilonSchedule, Reconstruct, distillation, two_runs
from vistok.train.karl_start import start_spatially
from vistok.train.karl_tuning import Tuning
from vistok.train.moving_average import moving_average
from vistok.train.optimizers import OPTIMIZERS, restore, update, warm_cosine
from vistok.train.step_loop import OnStep, run_steps
from vistok.weights import load_weights


@dataclass(frozen=True)
class Training:
    """One run. photos: folders of training pictures; scales: shorter sides the pictures are reduced to, in pixels.

    tokenizer: name of a preset, settings: overrides of it, start: checkpoint to begin from. stage: "distillation" or
    "tuning", whose settings are `tuning`. spatial: begin with slots laid out over the grid (`start_spatially`).
    first_budgets: T of the first run, budgets_per_step of them drawn and dealt out over the batch (1: the paper); the
    second run has the model's budget. eps_at_most: errors
    that first runs ask for. second_start: share of the steps after which the second run and the halting loss begin,
    the latter rising to halting_weight over as many steps again. optimizer: "adamw" or "muon". jitter: of colours.
    learning_rate falls on a cosine to 0.
    """

    out: str
    tokenizer: str = "karl_nano"
    photos: list[str] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    start: str | None = None
    stage: str = "distillation"
    tuning: dict[str, Any] = field(default_factory=dict)
    spatial: bool = False
    steps: int = 20_000
    batch: int = 16
    crop: int = 96
    scales: list[int] = field(default_factory=lambda: [1000, 700, 500, 350, 250, 180, 130, 100])
    jitter: float = 0.2
    first_budgets: list[int] = field(default_factory=lambda: list(range(16, 369, 16)))
    budgets_per_step: int = 1
    eps_at_most: float = 0.04
    halting_weight: float = 1.0
    second_start: float = 0.0
    optimizer: str = "adamw"
    learning_rate: float = 1e-4
    warmup: int = 200
    weight_decay: float = 0.05
    clip: float = 3.0
    ema: float = 0.9999
    bf16: bool = True
    seed: int = 0
    threads: int = 0
    save_every: int = 500
    log_every: int = 50


def train(training: Training, on_step: OnStep | None = None) -> dict[str, float]:
    """Run a recipe to its end and write the averaged model to `out/model`; returns the last logged metrics."""
    trainer = Trainer(training)
    metrics = trainer.run(on_step)
    write_half(trainer.averaged(), Path(training.out) / "model")
    return metrics


class Trainer:
    """Model, average, optimizers and step of one run; `run()` goes on from the last checkpoint in `out`."""

    def __init__(self, config: Training) -> None:
        """Raises: ValueError for an unknown stage or optimizer."""
        if config.stage not in ("distillation", "tuning") or config.optimizer not in OPTIMIZERS:
            raise ValueError(
                f"karl: expected stage distillation or tuning and optimizer {' or '.join(OPTIMIZERS)}, got "
                f"{config.stage!r} and {config.optimizer!r}"
            )
        if config.threads:
            torch.set_num_threads(config.threads)
        self.config = config
        self.out = Path(config.out)
        torch.manual_seed(config.seed)
        self.model: Any = create("tokenizer", config.tokenizer, **config.settings)
        if config.spatial:
            start_spatially(self.model)
        if config.start is not None:
            load_weights(self.model, config.start)
        self.tuning: Any = Tuning(self.model, **config.tuning) if config.stage == "tuning" else None
        self.model.base_tokenizer.requires_grad_(self.tuning is not None)
        self.average = AveragedModel(self.model, multi_avg_fn=moving_average(config.ema))
        self.optimizers = OPTIMIZERS[config.optimizer](self.model, config.learning_rate, config.weight_decay)
        self.schedule = EpsilonSchedule(self.model.epsilons, config.eps_at_most)
        self.sampler = CropSampler(config.photos, config.crop, config.scales, config.seed)
        self.step = 0
        self.seconds = 0.0

    def run(self, on_step: OnStep | None = None) -> dict[str, float]:
        """Go on from the last checkpoint to the last step, saving on the way; returns the last logged metrics."""
        return run_steps(self, on_step)

    def train_step(self) -> dict[str, float]:
        """One update; returns the loss terms, those of the second run with a 2 behind their name."""
        config, model = self.config, self.model
        torch.manual_seed(config.seed * 1_000_003 + self.step)
        images = augmented(self.sampler.batch(self.step, config.batch), config.jitter)
        first = self.first_budget()
        eps = self.schedule.draw(config.batch)
        model.train()
        ramp = self.halting_ramp()
        reconstruct: Reconstruct = distillation(model) if self.tuning is None else self.tuning.reconstruct(self.step)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=config.bf16):
            step = two_runs(
                model,
                images,
                first,
                model.budget if ramp > 0 else None,
                eps,
                reconstruct,
                halting_weight=config.halting_weight * ramp,
                noise=self._noise(images),
            )
        if self.tuning is not None and self.tuning.is_discriminator_step(self.step):
            terms = self.tuning.train_discriminator(step, images)
        else:
            terms = self._update(step.loss)
        self.schedule.update(step.error)
        self.step += 1
        for number, of_run in enumerate(step.terms, 1):
            terms |= {name + ("2" if number == 2 else ""): value for name, value in of_run.items()}
        shares = {"slots": step.budgets.float().mean(), "error": step.error.mean()}
        if len(step.runs) == 2:
            shares["kept"] = step.runs[1].keep.sum(1).float().mean()
        return {name: float(value.detach()) for name, value in {"loss": step.loss, **shares, **terms}.items()}

    def first_budget(self) -> int | Tensor:
        """T of this step's first run, one for all or [B], drawn from (seed, step)."""
        config = self.config
        rng = np.random.default_rng([config.seed, self.step, 1])
        drawn = rng.choice(config.first_budgets, config.budgets_per_step)
        if len(drawn) == 1:
            return int(drawn[0])
        return torch.from_numpy(np.resize(drawn, config.batch)).long()

    def halting_ramp(self) -> float:
        """0 before the second run begins, then up to 1."""
        begins = self.config.second_start * self.config.steps
        return min(1.0, max(0.0, (self.step + 1 - begins) / max(begins, 1.0)))

    def learning_rate(self) -> float:
        """Linear warm-up, then half a cosine from learning_rate to 0."""
        config = self.config
        return warm_cosine(config.learning_rate, self.step, config.steps, config.warmup)

    def averaged(self) -> nn.Module:
        """The averaged model, in eval mode."""
        module: nn.Module = self.average.module
        return module.eval()

    def save(self) -> None:
        """Write the checkpoint whole or not at all."""
        state: dict[str, Any] = {
            "step": self.step,
            "seconds": self.seconds,
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "schedule": self.schedule.state_dict(),
        }
        if self.tuning is not None:
            state["tuning"] = self.tuning.state_dict()
        write_state(self.out, state)

    def resume(self) -> None:
        """Go on from `out/last.pt` if there is one."""
        state = read_state(self.out)
        if state is None:
            return
        self.step, self.seconds = state["step"], state["seconds"]
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        self.schedule.load_state_dict(state["schedule"])
        restore(self.optimizers, state["optimizers"])
        if self.tuning is not None:
            self.tuning.load_state_dict(state["tuning"])

    def _update(self, loss: Tensor) -> dict[str, Tensor]:
        norm = update(self.optimizers, loss, self.model.parameters(), self.learning_rate(), self.config.clip)
        self.average.update_parameters(self.model)
        return {"grad_norm": norm}

    def _noise(self, images: Tensor) -> tuple[Tensor | None, Tensor | None]:
        return self.model.noise(images), self.model.noise(images)
