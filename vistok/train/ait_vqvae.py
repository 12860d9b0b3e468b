"""Training of AiT's VQ-VAE (arXiv:2301.02229) as AURORA (arXiv:2412.03548) does for depth: maps in, the same maps out.

The maps are the metric depth of rendered scenes, each beside its mirror image; batch number i is the same in every run,
and what is random in a step comes from (seed, step). So the state of a run is weights, average, optimizer and step.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from vistok.data.scenes.render import MIN_SIDE, render
from vistok.data.scenes.splits import seeds_of
from vistok.metrics.depth import scene_depth_scores
from vistok.registry import create
from vistok.train.checkpoint import read_state, write_state
from vistok.train.export import write_half
from vistok.train.moving_average import moving_average
from vistok.train.optimizers import OPTIMIZERS, restore, update, warm_cosine
from vistok.train.step_loop import OnStep, run_steps
from vistok.weights import load_weights


@dataclass(frozen=True)
class Training:
    """One run. codec: name of a depth codec's preset, settings: overrides of it, start: checkpoint to begin from.

    scenes: rendered for each step; the batch has twice as many maps, each scene and its mirror image. validation:
    scenes of the validation split on which the averaged model is measured at each row of the log. learning_rate falls
    on a cosine to 2 % of itself at `steps`.
    """

    out: str
    codec: str = "depth_nano"
    settings: dict[str, Any] = field(default_factory=dict)
    start: str | None = None
    steps: int = 4000
    scenes: int = 8
    validation: int = 64
    learning_rate: float = 1e-3
    warmup: int = 50
    weight_decay: float = 0.0
    clip: float = 1.0
    ema: float = 0.995
    seed: int = 0
    threads: int = 0
    save_every: int = 100
    log_every: int = 100


def train(training: Training, on_step: OnStep | None = None) -> dict[str, float]:
    """Run a recipe to its end and write the averaged codec to `out/model`; returns the last logged metrics."""
    trainer = Trainer(training)
    metrics = run_steps(trainer, on_step, measure=trainer.measured)
    write_half(trainer.averaged(), Path(training.out) / "model")
    return metrics


class Trainer:
    """Codec, average, optimizer and step of one run, as `run_steps` takes it."""

    def __init__(self, config: Training) -> None:
        if config.threads:
            torch.set_num_threads(config.threads)
        self.config, self.out = config, Path(config.out)
        torch.manual_seed(config.seed)
        self.codec: Any = create("codec", config.codec, **config.settings)
        if config.start is not None:
            load_weights(self.codec, config.start)
        self.average = AveragedModel(self.codec, multi_avg_fn=moving_average(config.ema))
        self.optimizers = OPTIMIZERS["adamw"](self.codec, config.learning_rate, config.weight_decay)
        self.step, self.seconds = 0, 0.0

    def train_step(self) -> dict[str, float]:
        """One update; returns the loss and its terms."""
        config = self.config
        torch.manual_seed(config.seed * 1_000_003 + self.step)
        maps = scene_maps(self.codec, self.step, config.scenes)
        out = self.codec.train().network(maps)
        rate = warm_cosine(config.learning_rate, self.step, config.steps, config.warmup, floor=0.02)
        norm = update(self.optimizers, out.loss, self.codec.parameters(), rate, config.clip)
        self.average.update_parameters(self.codec)
        self.step += 1
        terms = {"loss": out.loss, "reconstruction": out.reconstruction, "grad_norm": norm, **out.quantized.stats}
        return {name: float(value.detach()) for name, value in terms.items()}

    def measured(self, due: bool) -> dict[str, float]:
        """What a row of the log says about scenes that are never trained on."""
        if not due or not self.config.validation:
            return {}
        scores = scene_depth_scores(self.averaged(), seeds_of("validation")[: self.config.validation])
        book = scores.health.report(points=0)
        found = {"abs_rel": scores.abs_rel, "delta_1": scores.delta_1}
        return found | {"codes_used": book["usage"], "perplexity": book["perplexity"]}

    def averaged(self) -> nn.Module:
        """The codec with averaged weights, in eval mode; its codes are the trained one's."""
        module: nn.Module = self.average.module
        return module.eval()

    def save(self) -> None:
        """Write the checkpoint whole or not at all."""
        write_state(
            self.out,
            {
                "step": self.step,
                "seconds": self.seconds,
                "model": self.codec.state_dict(),
                "average": self.average.state_dict(),
                # How long codes have been idle is in no weight file, and decides which restart when.
                "buffers": dict(self.codec.named_buffers()),
                "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            },
        )

    def resume(self) -> None:
        """Go on from `out/last.pt` if there is one."""
        state = read_state(self.out)
        if state is None:
            return
        self.step, self.seconds = state["step"], state["seconds"]
        self.codec.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        for name, buffer in self.codec.named_buffers():
            buffer.copy_(state["buffers"][name])
        restore(self.optimizers, state["optimizers"])


def scene_maps(codec: Any, number: int, scenes: int) -> Tensor:
    """Batch of that number for the codec's network [2 * scenes, 1, S, S]: the depth of scenes and of their mirrors."""
    side = max(MIN_SIDE, codec.image_size)
    seeds = seeds_of("train")[number * scenes : (number + 1) * scenes]
    depth = torch.from_numpy(np.stack([render(seed, side).depth for seed in seeds]))
    maps: Tensor = codec.inputs(depth)
    return torch.cat((maps, maps.flip(-1)))
