"""A small language model learns to draw portraits in continuous latents (Ming-UniVision, arXiv:2510.06590, section 3).

It reads five words, for example "large striped red star checks", and makes the latents of a picture one after the
other: its hidden state conditions a rectified-flow head, the frozen tokenizer's causal decoder makes a semantic token
of what the head drew, and the model reads that. Some captions are hidden, so that guidance has what it compares with.
Every draw of a step comes from (seed, step), so a stopped run goes on as if it had not been.

The 1200 steps of `configs/train/image_latents.yaml` (5000 pictures, ten minutes of one core). What is read off drawn
pictures of 96 held-out captions, in %, by a judge that learned from 2500 real ones, and a probe for backgrounds:

    guidance         size  texture  colour  shape  background
    none               91       89      99     36          35
    2                  96       96      99     44          36
    3                  95       95      97     51          47
    real pictures      95       97     100     50          40
    chance             50       33      17     17          20

Colours, sizes and textures are drawn as they are asked for. Rings and round things are plain to see, other shapes are
blots with corners, and the judge itself reads shapes of real pictures only half the time. Backgrounds are busy or calm
as asked, but stripes and checks hardly join from patch to patch; more guidance makes them coarser.
"""

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.optim.swa_utils import AveragedModel

from vistok.config import check_settings
from vistok.layers.flow_sampler import Guidance
from vistok.metrics.linear_probe import linear_probe
from vistok.registry import create
from vistok.tokenizers.mingtok import MingTok
from vistok.train.checkpoint import read_state, write_state
from vistok.train.metrics_log import append_row
from vistok.train.moving_average import moving_average
from vistok.train.naming_and_drawing import picture_sheet
from vistok.train.optimizers import OPTIMIZERS, restore, update, warm_cosine
from vistok.train.portrait_latents import SHOWN, PortraitLatents, kept_portraits
from vistok.train.portrait_reader import PortraitReader
from vistok.train.step_loop import OnStep, run_steps
from vistok.weights import fingerprint

if TYPE_CHECKING:  # transformers takes seconds to import
    from vistok.lvlm.continuous_generation import ContinuousGenerator, Segment

_BEGIN, _IMAGE = "<s>", "<image>"
WORDS = (_BEGIN, _IMAGE, *(word for values in SHOWN.values() for word in values))
_HEAD = "image_head.safetensors"


@dataclass(frozen=True)
class Training:
    """One run. tokenizer: a preset of MingTok, checkpoint: weights other than its own. model: sizes of the language
    model, of `TinySettings`; head: width, depth and mlp_ratio of the flow head.

    side: pixels; pictures: to learn from, held_out: to draw the captions of. hidden: share of captions that are
    hidden. repeats: times drawn for each token and step. input_noise: standard deviation of noise on the semantic
    tokens that the model reads, in parts of theirs, since its own will not be right either. learning_rate falls on a
    cosine to 0. guidances: scales that are compared, 1 = none; flow_steps, time_shift, temperature: of drawing.
    reader_steps, reader_pictures: of the judge.
    """

    out: str
    tokenizer: str = "mingtok_nano"
    checkpoint: str | None = None
    model: dict[str, Any] = field(default_factory=lambda: {"width": 128, "layers": 4, "heads": 4})
    head: dict[str, Any] = field(default_factory=lambda: {"width": 192, "depth": 3})
    side: int = 96
    pictures: int = 6000
    held_out: int = 96
    steps: int = 3000
    batch: int = 32
    hidden: float = 0.15
    repeats: int = 4
    input_noise: float = 0.0
    optimizer: str = "muon"
    learning_rate: float = 2.5e-3
    warmup: int = 100
    weight_decay: float = 0.01
    clip: float = 1.0
    ema: float = 0.995
    bf16: bool = True
    guidances: list[float] = field(default_factory=lambda: [2.0, 1.0, 3.0])
    flow_steps: int = 16
    time_shift: float = 1.0
    temperature: float = 1.0
    reader_steps: int = 300
    reader_pictures: int = 2000
    seed: int = 0
    threads: int = 0
    save_every: int = 200
    log_every: int = 50


def train(training: Training, on_step: OnStep | None = None) -> dict[str, float]:
    """Run a recipe; writes to `out/model` what `load_generator` takes, and to `out/drawn.png` pictures.

    Returns the last metrics: draw_*_at_S how often the judge reads an attribute off pictures drawn with guidance S as
    it was asked for, read_* off real pictures behind the tokenizer, chance_* by guessing; accuracy, the mean of draw_*
    at the first scale.
    """
    if training.threads:
        torch.set_num_threads(training.threads)
    trainer = Trainer(training)
    metrics = trainer.run(on_step) | trainer.judge()
    log = trainer.out / "metrics.jsonl"
    rows = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    if not any(row["step"] == trainer.step and "accuracy" in row for row in rows):  # a finished run is judged anew
        append_row(log, metrics)
    trainer.export()
    return metrics


class Trainer:
    """Generator, average, optimizers and step of one run; `run()` goes on from the last checkpoint in `out`."""

    def __init__(self, config: Training) -> None:
        """Raises: ValueError for an unknown optimizer or no scale of guidance; TypeError for a setting unknown."""
        if config.optimizer not in OPTIMIZERS:
            raise ValueError(f"image_latents: expected optimizer {' or '.join(OPTIMIZERS)}, got {config.optimizer!r}")
        if not config.guidances:
            raise ValueError("image_latents: expected at least one scale in guidances, got none")
        self.config, self.out = config, Path(config.out)
        model: Any = create(
            "tokenizer", config.tokenizer, pretrained=config.checkpoint is None, checkpoint=config.checkpoint
        )
        self.tokenizer: MingTok = model.eval().requires_grad_(False)
        torch.manual_seed(config.seed)
        self.generator = build_generator(self.tokenizer, config.model, config.head)
        self.average = AveragedModel(self.generator, multi_avg_fn=moving_average(config.ema))
        self.optimizers = OPTIMIZERS[config.optimizer](self.generator, config.learning_rate, config.weight_decay)
        self.step, self.seconds = 0, 0.0

    def run(self, on_step: OnStep | None = None) -> dict[str, float]:
        """Go on from the last checkpoint to the last step, saving on the way; returns the last logged metrics."""
        return run_steps(self, on_step)

    @cached_property
    def pictures(self) -> PortraitLatents:
        """To learn from; encoded once and kept in `out`."""
        return self._portraits("train", self.config.pictures)

    @cached_property
    def held_out(self) -> PortraitLatents:
        """Whose captions are drawn."""
        return self._portraits("test", self.config.held_out)

    def train_step(self) -> dict[str, float]:
        """One update; returns the loss and the norm of its gradient."""
        config = self.config
        draw = torch.Generator().manual_seed(config.seed * 1_000_003 + self.step)
        chosen = torch.randint(len(self.pictures), (config.batch,), generator=draw)
        told = torch.rand(config.batch, generator=draw) >= config.hidden
        latents, semantic = self.pictures.tokens(self.tokenizer, chosen)
        if config.input_noise:
            assert semantic.embeds is not None
            scale = config.input_noise * self.semantic_std
            noise = torch.randn(semantic.embeds.shape, generator=draw)
            semantic.embeds.add_(scale * noise)
        self.generator.train()
        # The fused kernel's way back is the slower one on CPUs for sequences this short.
        math = sdpa_kernel(SDPBackend.MATH)
        with math, torch.autocast("cpu", dtype=torch.bfloat16, enabled=config.bf16):
            loss = self.generator.flow_loss(
                prompt(self.generator, {name: values[chosen] for name, values in self.pictures.attributes.items()}),
                latents,
                semantic=semantic,
                told=told,
                repeats=config.repeats,
                generator=draw,
            )
        trained = [parameter for parameter in self.generator.parameters() if parameter.requires_grad]
        rate = warm_cosine(config.learning_rate, self.step, config.steps, config.warmup)
        norm = update(self.optimizers, loss, trained, rate, config.clip)
        self.average.update_parameters(self.generator)
        self.step += 1
        return {"loss": float(loss.detach()), "grad_norm": float(norm)}

    @cached_property
    def semantic_std(self) -> Tensor:
        """Of semantic tokens, channel by channel: [W]."""
        return self.pictures.semantic[:500].float().flatten(0, 1).std(0)

    def judge(self) -> dict[str, float]:
        """What is read off pictures drawn by now; writes `out/drawn.png`: real ones, then each scale of guidance."""
        config, asked = self.config, self.held_out.attributes
        real = self.held_out.reconstructions(self.tokenizer, len(self.held_out))
        drawn = {scale: self.draw(asked, scale) for scale in config.guidances}
        picture_sheet(self.out / "drawn.png", real, *drawn.values())
        found: dict[str, float] = {"step": self.step}
        for name, values in self.read(real, asked).items():
            found |= {f"read_{name}": values, f"chance_{name}": 1 / len(SHOWN[name])}
        for scale, images in drawn.items():
            read = self.read(images, asked)
            found |= {f"draw_{name}_at_{scale:g}": values for name, values in read.items()}
        first = [found[f"draw_{name}_at_{config.guidances[0]:g}"] for name in SHOWN]
        return found | {"accuracy": sum(first) / len(first)}

    @torch.no_grad()
    def draw(self, attributes: Mapping[str, Tensor], guidance: float) -> Tensor:
        """Pictures [B, 3, side, side] in [0, 1] of attributes [B] each, by the averaged model.

        guidance: the scale, 1 for none; the same noise for every scale.
        """
        config = self.config
        side = config.side // self.tokenizer.patch
        draw = torch.Generator().manual_seed(config.seed)
        generator: Any = self.average.module
        generator.eval()
        made = generator.dialogue().make_image(
            prompt(generator, attributes),
            (side, side),
            guidance=None if guidance == 1 else Guidance(text=guidance),
            temperature=config.temperature,
            steps=config.flow_steps,
            time_shift=config.time_shift,
            generator=draw,
        )
        return self.tokenizer.decode(made.semantic)

    def read(self, images: Tensor, shown: Mapping[str, Tensor]) -> dict[str, float]:
        """How often pictures [B, 3, side, side] show what they should, each attribute [B] int64.

        The judge looks at the thing. The background is everywhere: it is read by a linear probe off mean and standard
        deviation of a picture's semantic tokens.
        """
        with torch.no_grad():
            semantic = self.tokenizer.semantic(self.tokenizer.encode(images)).embeds
        assert semantic is not None
        known = self.pictures.semantic[: self.config.reader_pictures].float()
        labels = self.pictures.attributes["background"][: len(known)]
        probe = linear_probe(_moments(known), labels, _moments(semantic), shown["background"])
        return {**self.reader.accuracy(images, shown), "background": probe.accuracy}

    @cached_property
    def reader(self) -> PortraitReader:
        """The judge of drawn pictures, which learns from real ones behind the tokenizer when it is first asked."""
        count = min(self.config.reader_pictures, len(self.pictures))
        shown = {name: values[:count] for name, values in self.pictures.attributes.items()}
        images = self.pictures.reconstructions(self.tokenizer, count)
        return PortraitReader.learn(images, shown, steps=self.config.reader_steps)

    def save(self) -> None:
        """Write the checkpoint whole or not at all."""
        state = {
            "step": self.step,
            "seconds": self.seconds,
            "trained": _trained(self.generator),
            "average": _trained(self.average.module),
            "averaged": self.average.n_averaged,
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
        }
        write_state(self.out, state)

    def resume(self) -> None:
        """Go on from `out/last.pt` if there is one."""
        state = read_state(self.out)
        if state is None:
            return
        self.step, self.seconds = state["step"], state["seconds"]
        for module, saved in ((self.generator, state["trained"]), (self.average.module, state["average"])):
            parameters = dict(module.named_parameters())
            with torch.no_grad():
                for name, value in saved.items():
                    parameters[name].copy_(value)
        self.average.n_averaged.copy_(state["averaged"])
        restore(self.optimizers, state["optimizers"])

    def export(self) -> None:
        """Write the averaged language model and head to `out/model`, whole or not at all; the tokenizer stays out."""
        generator: Any = self.average.module
        folder = self.out / "model"
        partial = folder.with_name(f"model.tmp.{os.getpid()}")
        generator.language_model.save_pretrained(partial)
        head = {name: value.contiguous() for name, value in generator.head.state_dict().items()}
        save_file(head, partial / _HEAD, {"head": json.dumps(self.config.head), "words": json.dumps(WORDS)})
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(partial, folder)

    def _portraits(self, split: str, count: int) -> PortraitLatents:
        self.out.mkdir(parents=True, exist_ok=True)
        file = self.out / f"{split}.safetensors"
        weights = fingerprint(self.tokenizer, {})
        return kept_portraits(file, self.tokenizer, split, count, self.config.side, weights)


def build_generator(tokenizer: MingTok, model: Mapping[str, Any], head: Mapping[str, Any]) -> "ContinuousGenerator":
    """An untrained language model over WORDS, with the head between it and a tokenizer; torch's global generator.

    model: of `TinySettings`; head: of `ImageHead`. Raises: TypeError for a setting that they do not have.
    """
    from vistok.lvlm.continuous_generation import ContinuousGenerator, ImageHead
    from vistok.lvlm.tiny_llama import TinySettings, untrained_llama

    check_settings("image_latents model", TinySettings, model)
    sizes = TinySettings(**model)
    joined = ImageHead(tokenizer.semantic_dim, sizes.width, tokenizer.dim, **head)
    return ContinuousGenerator(untrained_llama(sizes, len(WORDS)), tokenizer, joined)


def load_generator(folder: str | Path, tokenizer: MingTok) -> "ContinuousGenerator":
    """What `Trainer.export` wrote, with the tokenizer it was trained with; prompts are those of `prompt`."""
    from transformers import LlamaForCausalLM

    from vistok.lvlm.continuous_generation import ContinuousGenerator, ImageHead

    language_model = LlamaForCausalLM.from_pretrained(folder)
    with safe_open(Path(folder) / _HEAD, "pt") as stored:
        settings = json.loads(stored.metadata()["head"])
        tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
    hidden = language_model.config.hidden_size
    head = ImageHead(tokenizer.semantic_dim, hidden, tokenizer.dim, **settings)
    head.load_state_dict(tensors)
    return ContinuousGenerator(language_model, tokenizer, head).eval()


def prompt(generator: "ContinuousGenerator", attributes: Mapping[str, Tensor]) -> "list[Segment]":
    """A turn that asks for pictures: attributes, names in SHOWN -> [B] int64, each a word between two marks."""
    ids = torch.stack([_first_id(name) + attributes[name] for name in SHOWN], 1)
    begin, image = (torch.full((len(ids), 1), WORDS.index(mark)) for mark in (_BEGIN, _IMAGE))
    return [generator.frame(begin), generator.text(ids), generator.frame(image)]


def _first_id(name: str) -> int:
    return WORDS.index(SHOWN[name][0])


def _moments(tokens: Tensor) -> Tensor:
    return torch.cat([tokens.mean(1), tokens.std(1)], -1)


def _trained(generator: Any) -> dict[str, Tensor]:
    """The parameters that learn, by name: the tokenizer's do not."""
    return {name: value.detach() for name, value in generator.named_parameters() if value.requires_grad}
