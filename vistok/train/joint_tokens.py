"""Ids alone, vectors alone, or both at once: three small diffusion models of scenes (CCDD, arXiv:2510.03206).

One net of `vistok.layers.joint_diffusion` per arm, of one size and for as many steps, learns pictures of one thing
behind vq_nano, told by four words. "ids" sees and predicts masked ids, "vectors" noised codes, "joint" both, for half
of the pictures each at its own time (so that it can also be asked with one part pure noise), else at one time.

The recipe's 500 steps per arm (2000 pictures of 64 pixels, 200 held out, one seed; one standard error of a share is 2
to 3.5 points): bits a token at most, the vectors pure noise; error of the velocity, the ids masked; % drawn as told:

| arm | bits | error | size | texture | colour | shape |
|---|---|---|---|---|---|---|
| ids | 13.18 | | 89.5 | 34.0 | 90.5 | 21.0 |
| vectors | | 1.223 | 82.5 | 35.5 | 81.0 | 23.0 |
| joint, by its ids | 13.54 | 1.299 | 78.0 | 36.0 | 83.0 | 20.5 |
| joint, by its vectors | | | 76.5 | 33.5 | 81.0 | 20.5 |
| joint, each part seen at the other's time | 9.24 | 0.643 | | | | |
| real pictures, read by the judge | | | 93.0 | 87.0 | 100.0 | 48.5 |

So at equal steps both at once is not better here than ids alone, in bits or in drawing (colour 83 against 90.5 %):
one small net shares its steps between two tasks. That each part helps the other where it is seen (9.24 bits, 0.643)
is no gain of itself, for vectors of this tokenizer are the codes of the ids: they tell the same thing twice, where the
paper takes them from a pretrained encoder. Texture and shape are near chance (33 and 17) in all arms.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from vistok.layers.digit_codes import join_digits, split_digits
from vistok.layers.joint_diffusion import JointDenoiser, noised
from vistok.ops.nearest_code import nearest_code
from vistok.train.checkpoint import write_weights
from vistok.train.metrics_log import append_row
from vistok.train.naming_and_drawing import picture_sheet
from vistok.train.portrait_codes import PortraitCodes, pictures_of
from vistok.train.portrait_reader import ATTRIBUTES
from vistok.train.portrait_trial import PortraitTrial
from vistok.train.same_settings import keep_settings
from vistok.train.stage import Stage, StageSettings
from vistok.train.step_loop import OnStep

_NATS_PER_BIT = 0.6931471805599453
_BATCH = 100  # of measures
_FREE = ("out", "threads", "held_out", "draw_steps", "reader_steps")  # no checkpoint depends on these
_TIMES = (0.1, 0.3, 0.5, 0.7, 0.9)


class Arm(NamedTuple):
    """Which parts a model sees and predicts."""

    ids: bool
    vectors: bool


ARMS = {"ids": Arm(True, False), "vectors": Arm(False, True), "joint": Arm(True, True)}


@dataclass(frozen=True)
class Training:
    """One run. tokenizer: a preset with an FSQ grid; side: pixels; pictures: to learn from; held_out: to judge by.

    model: sizes of `JointDenoiser`. steps: of each arm. vector_weight: w_c, ids weigh 1. apart: share of the
    pictures of which the two parts of "joint" have times of their own. least: the smallest time, since 1/t weighs the
    ids. draw_steps: from noise to data. reader_steps: of the judge.
    """

    out: str
    tokenizer: str = "vq_nano"
    side: int = 64
    pictures: int = 2000
    held_out: int = 200
    model: dict[str, Any] = field(default_factory=lambda: {"width": 96, "layers": 3, "heads": 4})
    steps: int = 500
    batch: int = 16
    rate: float = 2e-3
    vector_weight: float = 4.0
    apart: float = 0.5
    least: float = 0.05
    draw_steps: int = 16
    reader_steps: int = 300
    seed: int = 0
    threads: int = 0


class Teller(nn.Module):
    """A denoiser with the words that tell it what to draw."""

    def __init__(self, denoiser: JointDenoiser, width: int) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.words = nn.ModuleList(nn.Embedding(len(values), width) for values in ATTRIBUTES.values())

    def prompt(self, shown: Tensor) -> Tensor:
        """Attributes [B, 4] -> [B, 4, W]."""
        return torch.stack([table(shown[:, place]) for place, table in enumerate(self.words)], 1)


def train(training: Training, on_step: OnStep | None = None) -> dict[str, float]:
    """Run a recipe; writes the arms to `out/model` and pictures that they drew to `out/drawn.png`.

    Returns for each arm: bits_A, an upper bound of bits per token on pictures held out, the vectors pure noise;
    error_A, mean squared error of the velocity, the ids masked; draw_*_A how often the judge reads an attribute off
    what was drawn; for "joint" also with the other part seen at the same time (bits_joint_seen, error_joint_seen), and
    drawn by its vectors (draw_*_joint_vectors); read_* off real pictures; accuracy, the mean of draw_* of "joint".
    """
    if training.threads:
        torch.set_num_threads(training.threads)
    trainer = Trainer(training)
    metrics = trainer.run(on_step)
    append_row(trainer.out / "metrics.jsonl", metrics)
    return metrics


class Trainer:
    """Tokenizer, pictures and arms of one run; every arm goes on from its last checkpoint."""

    def __init__(self, config: Training) -> None:
        """Raises: ValueError for a tokenizer without FSQ levels."""
        self.config, self.out = config, Path(config.out)
        self.trial = PortraitTrial(
            self.out, config.tokenizer, config.pictures, config.held_out, config.side, config.reader_steps
        )
        self.sizes = self.trial.sizes

    @cached_property
    def scale(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation [C] of codes, channel by channel."""
        codes = self.trial.tokenizer.quantizer.lookup(self.trial.pictures.ids).flatten(0, 1)
        return codes.mean(0), codes.std(0)

    def vectors(self, ids: Tensor) -> Tensor:
        """Ids [B, N] -> codes [B, N, C], standardised."""
        mean, std = self.scale
        codes: Tensor = self.trial.tokenizer.quantizer.lookup(ids)
        return (codes - mean) / std

    def nearest_ids(self, vectors: Tensor) -> Tensor:
        """Standardised vectors [B, N, C] -> ids [B, N] of the nearest codes."""
        mean, std = self.scale
        codes = self.trial.tokenizer.quantizer.lookup(torch.arange(self.trial.tokenizer.codebook_sizes[0]))
        found: Tensor = nearest_code((vectors * std + mean).flatten(0, 1), codes)
        return found.reshape(vectors.shape[:2])

    def run(self, on_step: OnStep | None = None) -> dict[str, float]:
        """All arms one after another, from one start; returns what each has learned.

        Raises: ValueError for a folder with arms of other settings.
        """
        config = self.config
        keep_settings("joint_tokens", config, self.out, _FREE)
        found = self.trial.read(self.trial.real, "read")
        rows = [self.trial.real]
        for name, arm in ARMS.items():
            model = self.made()
            Stage(self.out / name, model, self.loss(model, arm), StageSettings(config.steps, config.rate)).run(on_step)
            model.eval()
            drawn = self.drawn(model, arm)
            rows += drawn.values()
            found |= self.measure(model, arm, name)
            for part, pictures in drawn.items():
                label = name if part == "ids" or not arm.ids else f"{name}_{part}"
                found |= self.trial.read(pictures, "draw", f"_{label}")
            write_weights(self.out / "model" / f"{name}.safetensors", model)
        picture_sheet(self.out / "drawn.png", *rows)
        told = [found[f"draw_{name}_joint"] for name in ATTRIBUTES]
        return {"step": float(config.steps), "accuracy": sum(told) / len(told)} | found

    def made(self) -> Teller:
        """An untrained model, the same each time."""
        config = self.config
        tokens = (config.side // self.trial.tokenizer.patch) ** 2
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            denoiser = JointDenoiser(self.sizes, self.trial.tokenizer.dim, tokens, **config.model)
            return Teller(denoiser, denoiser.position.shape[1])

    def loss(self, model: Teller, arm: Arm) -> Callable[[int], Tensor]:
        """The loss of a step."""
        config = self.config

        def loss(step: int) -> Tensor:
            draw = torch.Generator().manual_seed(config.seed * 1_000_003 + step)
            chosen = torch.randint(len(self.trial.pictures), (config.batch,), generator=draw)
            t, s = config.least + (1 - config.least) * torch.rand(2, config.batch, generator=draw)
            together = torch.rand(config.batch, generator=draw) >= config.apart
            one = torch.ones(config.batch)
            if not (arm.ids and arm.vectors):
                t, s = (t if arm.ids else one), (s if arm.vectors else one)
            else:
                s = torch.where(together, t, s)
            discrete, continuous = self.terms(model, self.trial.pictures, chosen, t, s, draw)
            total = discrete.new_zeros(())
            if arm.ids:
                total = total + discrete
            if arm.vectors:
                total = total + config.vector_weight * continuous
            return total

        return loss

    def terms(
        self, model: Teller, portraits: PortraitCodes, chosen: Tensor, t: Tensor, s: Tensor, draw: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Both losses of the pictures `chosen` [B] at times t and s [B]."""
        ids = portraits.ids[chosen]
        digits, z = split_digits(ids, self.sizes), self.vectors(ids)
        seen = noised(digits, z, t, s, draw)
        return model.denoiser.loss(model.prompt(portraits.shown[chosen]), digits, z, t, s, seen)

    @torch.no_grad()
    def measure(self, model: Teller, arm: Arm, name: str) -> dict[str, float]:
        """bits and error at the same times and noise for every arm."""
        asked = {"": (arm.ids, arm.vectors, False)}
        if arm.ids and arm.vectors:
            asked["_seen"] = (True, True, True)
        found = {}
        for end, (ids, vectors, seen) in asked.items():
            sums = torch.zeros(2, dtype=torch.float64)
            draw = torch.Generator().manual_seed(self.config.seed)
            places = torch.arange(len(self.trial.held_out)).split(_BATCH)
            for time in _TIMES:
                for chosen in places:
                    at, one = torch.full((len(chosen),), time), torch.ones(len(chosen))
                    share = len(chosen) / len(self.trial.held_out) / len(_TIMES)
                    state = draw.get_state()
                    discrete, _ = self.terms(model, self.trial.held_out, chosen, at, at if seen else one, draw)
                    draw.set_state(state)
                    _, continuous = self.terms(model, self.trial.held_out, chosen, at if seen else one, at, draw)
                    sums += share * torch.stack([discrete, continuous]).double()
            if ids:
                found[f"bits_{name}{end}"] = float(sums[0]) / _NATS_PER_BIT
            if vectors:
                found[f"error_{name}{end}"] = float(sums[1])
        return found

    @torch.no_grad()
    def drawn(self, model: Teller, arm: Arm) -> dict[str, Tensor]:
        """Pictures [S, 3, side, side] of the attributes held out, by ids and by vectors, as far as the arm has them."""
        draw = torch.Generator().manual_seed(self.config.seed)
        found: dict[str, list[Tensor]] = {"ids": [], "vectors": []}
        for shown in self.trial.held_out.shown.split(_BATCH):
            digits, z = model.denoiser.draw(
                model.prompt(shown), steps=self.config.draw_steps, ids=arm.ids, z=arm.vectors, generator=draw
            )
            if arm.ids:
                found["ids"].append(join_digits(digits, self.sizes))
            if arm.vectors:
                found["vectors"].append(self.nearest_ids(z))
        return {part: pictures_of(self.trial.tokenizer, torch.cat(ids)) for part, ids in found.items() if ids}
