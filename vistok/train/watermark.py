"""Which tokens a watermark should take: a net learns whether a marked token keeps its class (see
`vistok.codecs.watermark`).

Each step marks a random part of the tokens of photographs' crops for a key of its own, decodes them, leaves them as
they are or compresses them, and encodes them again. What each marked token has become is the label, once for the ids
that an embedder sees and once for those that a detector sees, so that both choose alike. The tokenizer is frozen.

The recipe (41 photographs, 6 held out) of 250 steps: of the marked tokens of photographs never trained on 75 % keep
their class, of those among the sixteenth with the highest scores 88 %. What that is worth stands in
`vistok.codecs.watermark`. The tokenizer itself has seen all of these photographs.
"""

import os
import shutil
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

from vistok.codecs.watermark import SurvivalNet, Watermark, best_places
from vistok.data.crops import CropSampler
from vistok.data.images import list_images
from vistok.metrics.watermark import ATTACKS
from vistok.registry import create
from vistok.train.metrics_log import append_row
from vistok.train.stage import Stage, StageSettings
from vistok.train.step_loop import OnStep

_HELD_OUT = 8  # each so many photographs one is only measured on
_CHECKED = 1_000_000  # the first step of batches to measure on


@dataclass(frozen=True)
class Training:
    """One run. photos: folders of training pictures; scales: shorter sides that they are reduced to, in pixels.

    tokenizer: a preset of one codebook on a grid; modulus: classes. parts: smallest and largest share of marked tokens.
    checks: batches of photographs never trained on to measure by.
    """

    out: str
    photos: list[str] = field(default_factory=list)
    tokenizer: str = "vq_nano"
    modulus: int = 2
    width: int = 32
    crop: int = 128
    scales: list[int] = field(default_factory=lambda: [700, 500, 350])
    batch: int = 6
    steps: int = 250
    rate: float = 3e-3
    parts: tuple[float, float] = (0.05, 0.3)
    checks: int = 6
    seed: int = 0
    threads: int = 0


def train(training: Training, on_step: OnStep | None = None) -> dict[str, float]:
    """Run a recipe; writes `out/model`, which `load_scorer` takes.

    Returns, on photographs never trained on: random and chosen, the share of marked tokens that keep their class, of
    all and of the sixteenth with the highest scores; held_out_loss; accuracy, that of chosen ones.
    """
    if training.threads:
        torch.set_num_threads(training.threads)
    trainer = Trainer(training)
    last = Stage(trainer.out, trainer.net, trainer.loss, StageSettings(training.steps, training.rate)).run(on_step)
    metrics = last | trainer.check()
    append_row(trainer.out / "metrics.jsonl", metrics)
    trainer.export()
    return metrics


class Trainer:
    """Tokenizer, photographs and net of one run."""

    def __init__(self, config: Training) -> None:
        """Raises: FileNotFoundError, ValueError for fewer than two pictures, or a tokenizer of not one codebook."""
        self.config, self.out = config, Path(config.out)
        files = [path for folder in config.photos for path in list_images(folder)]
        if len(files) < 2:
            raise ValueError(
                f"train watermark: expected photos, folders of two pictures or more, one of {_HELD_OUT} only "
                f"to measure on, got {len(files)} pictures in {config.photos}"
            )
        tokenizer: Any = create("tokenizer", config.tokenizer, pretrained=True)
        self.tokenizer = tokenizer.eval().requires_grad_(False)
        self.codebook = codebook_of(self.tokenizer)
        torch.manual_seed(config.seed)
        self.net = SurvivalNet(self.codebook.shape[1], config.width)
        self.files = {
            "train": [path for place, path in enumerate(files) if place % _HELD_OUT],
            "test": files[::_HELD_OUT],
        }

    @cached_property
    def crops(self) -> CropSampler:
        """Of photographs to learn from."""
        return self._sampler("train")

    def loss(self, step: int) -> Tensor:
        """Cross entropy of what became of the marked tokens."""
        before, after, marked, kept = self.marked(self.crops.batch(step, self.config.batch), step)
        logits = torch.cat([self.net(before)[marked], self.net(after)[marked]])
        return functional.binary_cross_entropy_with_logits(logits, kept[marked].float().repeat(2))

    @torch.no_grad()
    def marked(self, images: Tensor, step: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Codes [B, h, w, D] before and after, marked [B, N] bool, and whether each then has its class [B, N] bool."""
        config = self.config
        draw = torch.Generator().manual_seed(config.seed * 1_000_003 + step)
        watermark = Watermark(self.codebook, f"step {step}", config.modulus)
        tokens = self.tokenizer.encode(images)
        ids: Tensor = tokens.indices
        low, high = config.parts
        part = low + (high - low) * torch.rand(len(ids), 1, generator=draw)
        marked = torch.rand(ids.shape, generator=draw) < part
        replaced = torch.where(marked, watermark.replacements(ids), ids)
        attack = list(ATTACKS.values())[int(torch.randint(len(ATTACKS), (), generator=draw))]
        pictures = self.tokenizer.decode(replace(tokens, indices=replaced, embeds=None))
        again: Tensor = self.tokenizer.encode(attack(pictures)).indices
        kept = watermark.table[again] == watermark.table[replaced]
        before, after = (self.codebook[seen].unflatten(1, tokens.spec.grid) for seen in (ids, again))
        return before, after, marked, kept

    @torch.no_grad()
    def check(self) -> dict[str, float]:
        """What `train` returns of the net."""
        sampler, sums = self._sampler("test"), torch.zeros(5, dtype=torch.float64)
        for number in range(self.config.checks):
            step = _CHECKED + number
            before, _, marked, kept = self.marked(sampler.batch(step, self.config.batch), step)
            logits = self.net(before)
            loss = functional.binary_cross_entropy_with_logits(logits[marked], kept[marked].float(), reduction="sum")
            chosen = torch.zeros_like(marked).scatter(1, best_places(logits, max(1, logits.shape[1] // 16)), True)
            taken = marked & chosen
            # Sums over all batches: in a small one no chosen token may be marked.
            sums += torch.stack([kept[marked].sum(), kept[taken].sum(), loss, marked.sum(), taken.sum()])
        of_marked, of_best = sums[3:]
        random, best, held_out = (sums[:3] / torch.stack([of_marked, of_best, of_marked])).tolist()
        return {"random": random, "chosen": best, "held_out_loss": held_out, "accuracy": best}

    def export(self) -> None:
        """Write the net to `out/model`, whole or not at all."""
        folder = self.out / "model"
        partial = folder.with_name(f"model.tmp.{os.getpid()}")
        partial.mkdir(parents=True)
        weights = {name: value.half().contiguous() for name, value in self.net.state_dict().items()}
        told = {"dim": str(self.net.dim), "width": str(self.net.width), "tokenizer": self.config.tokenizer}
        save_file(weights, partial / "survival.safetensors", told)
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(partial, folder)

    def _sampler(self, split: str) -> CropSampler:
        config = self.config
        return CropSampler(self.files[split], config.crop, config.scales, config.seed)


def load_scorer(folder: str | Path) -> SurvivalNet:
    """What `train` wrote to `out/model`. Raises: FileNotFoundError, ValueError naming the file if it is none."""
    file = Path(folder) / "survival.safetensors"
    if not file.is_file():
        raise FileNotFoundError(f"{file}: expected the net that `vistok train watermark` writes to OUT/model")
    with safe_open(file, "pt") as stored:
        told = stored.metadata() or {}
        tensors = {name: stored.get_tensor(name).float() for name in stored.keys()}  # noqa: SIM118
    try:
        net = SurvivalNet(int(told["dim"]), int(told["width"]))
        net.load_state_dict(tensors)
    except (KeyError, ValueError, RuntimeError) as error:
        raise ValueError(f"{file}: expected the net that `vistok train watermark` writes, got {error}") from error
    return net.eval().requires_grad_(False)


def codebook_of(tokenizer: Any) -> Tensor:
    """The codes [K, D] of a tokenizer of one codebook. Raises: ValueError for another."""
    sizes = tuple(getattr(tokenizer, "codebook_sizes", ()))
    quantizer = getattr(tokenizer, "quantizer", None)
    if len(sizes) != 1 or not hasattr(quantizer, "lookup"):
        name = getattr(tokenizer, "name", type(tokenizer).__name__)
        raise ValueError(f"{name}: expected a tokenizer of one codebook such as vq_nano, got codebooks {sizes}")
    codes: Tensor = tokenizer.quantizer.lookup(torch.arange(sizes[0]))
    return codes
