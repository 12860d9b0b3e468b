"""End-to-end vision tokenizer tuning (ETT, arXiv:2505.10562): a run goes through the stages of a table.

Every random draw of a step comes from (seed, stage, step), so a run that is stopped goes on as if it had not been. The
table stands in the recipe (`Stage`), and so do the terms of L_vq; the model is `EndToEnd`, which takes any of our
quantizers and any causal language model of Hugging Face. It learns from a file of pictures with questions and answers,
or, if that is micro_lvlm, from rendered scenes; batches of other data go to `Trainer(batches=...)`.
"""

import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_model, save_model
from torch import nn

from vistok.lvlm.causal_lm import load_causal_lm, load_words
from vistok.lvlm.micro import vocabulary
from vistok.lvlm.visual_generation import VisualHead
from vistok.registry import create
from vistok.train.checkpoint import read_state, write_state
from vistok.train.ett_conversations import Conversations
from vistok.train.ett_model import Batch, EndToEnd, VqLoss
from vistok.train.ett_scenes import Scenes, assess
from vistok.train.ett_stages import Stage, chosen_stages, read_stages
from vistok.train.export import write_half
from vistok.train.losses import PatchDiscriminator, hinge_discriminator_loss, make_losses
from vistok.train.metrics_log import append_row, drop_rows_after
from vistok.train.step_loop import OnStep

Batches = Callable[[Stage, int], Batch]
_STREAM = 1_000_000  # steps that a stream can have before it meets the next one


@dataclass(frozen=True)
class Training:
    """One run. stages: rows of the table (`Stage`); run: names of those to go through in order, all if empty.

    tokenizer: name of a preset, settings: overrides of it. language: as `load_causal_lm` takes it. start: a file that
    an earlier run wrote (`out/<stage>.safetensors`), to go on from. generate: whether the model has output rows for
    visual ids. losses: terms of L_rec, name -> weight; quantizer, adversarial: weights of the rest of L_vq. data,
    images, prompt: as `Conversations` takes them; without data scenes are drawn. steps: of every stage, if not the
    table's. clip: norm of each part's gradient. assessed: scenes of the validation split that each stage ends with,
    0 = none.
    """

    out: str
    stages: list[dict[str, Any]] = field(default_factory=list)
    run: list[str] = field(default_factory=list)
    tokenizer: str = "ett_nano"
    settings: dict[str, Any] = field(default_factory=dict)
    language: str = "micro_lvlm"
    start: str | None = None
    generate: bool = False
    losses: dict[str, float] = field(default_factory=lambda: {"l1": 1.0})
    quantizer: float = 1.0
    adversarial: float = 0.0
    data: str | None = None
    images: str | None = None
    prompt: str = "{question}\n"
    steps: int | None = None
    clip: float = 1.0
    bf16: bool = True
    seed: int = 0
    threads: int = 0
    save_every: int = 100
    log_every: int = 20
    assessed: int = 256


def train(training: Training, on_step: OnStep | None = None) -> dict[str, float]:
    """Go through the chosen stages and write the tokenizer to `out/model`; returns the last logged metrics."""
    trainer = Trainer(training)
    metrics = trainer.run(on_step)
    write_half(trainer.model.tokenizer, Path(training.out) / "model")
    return metrics


class Trainer:
    """Model, optimizer, stage and step of one run; `run()` goes on from the last checkpoint in `out`."""

    def __init__(self, config: Training, batches: Batches | None = None, model: EndToEnd | None = None) -> None:
        """batches: makes the batch of a number for a stage, in place of scenes; model: in place of the config's."""
        if config.threads:
            torch.set_num_threads(config.threads)
        self.config, self.out = config, Path(config.out)
        table = chosen_stages(read_stages(config.stages), config.run)
        self.stages = [replace(stage, steps=config.steps or stage.steps) for stage in table]
        torch.manual_seed(config.seed)
        self.model = make_model(config) if model is None else model
        if config.start is not None:
            _load(self.model, config.start)
        self.draws_scenes = batches is None and config.data is None
        self.batches = batches or (self._scenes if config.data is None else self._conversations())
        if self.draws_scenes:
            self._check_words()
        self.discriminator = PatchDiscriminator() if config.adversarial else None
        if self.discriminator is not None:
            self.discriminator_optimizer = torch.optim.Adam(self.discriminator.parameters(), 1e-4, (0.5, 0.9))
        self.vq = VqLoss(make_losses(config.losses), config.quantizer, config.adversarial, self._judged)
        self.stage = self.step = self.total = 0
        self.seconds = 0.0
        self._begin()

    def run(self, on_step: OnStep | None = None) -> dict[str, float]:
        """Go on from the last checkpoint to the end of the last stage; returns the last logged metrics.

        Raises: FloatingPointError naming stage and step if a loss is not finite.
        """
        config, metrics = self.config, dict[str, float]()
        self.out.mkdir(parents=True, exist_ok=True)
        (self.out / "config.json").write_text(json.dumps(asdict(config), indent=2), encoding="utf-8")
        self.resume()
        drop_rows_after(self.out / "metrics.jsonl", self.total)
        began = time.monotonic() - self.seconds
        while self.stage < len(self.stages):
            values = self.train_step()
            self.seconds = time.monotonic() - began
            stage, last = self.current, self.step == self.current.steps
            if not math.isfinite(values["loss"]):
                raise FloatingPointError(
                    f"{self.out}: loss is {values['loss']} in stage {stage.name}, step {self.step}; lower its "
                    "learning_rate"
                )
            if last:
                values |= self.assess()
            if self.step % config.log_every == 0 or last:
                metrics = {"step": self.total, "stage": self.stage, "seconds": round(self.seconds, 1), **values}
                append_row(self.out / "metrics.jsonl", {name: round(value, 5) for name, value in metrics.items()})
            if last:
                save_model(self.model, str(self.out / f"{stage.name}.safetensors"))
                self.stage, self.step = self.stage + 1, 0
                self._begin()
            if self.step % config.save_every == 0:
                self.save()
            if on_step is not None:
                on_step(self.total, values)
        return metrics

    @property
    def current(self) -> Stage:
        """The stage at hand."""
        return self.stages[self.stage]

    def train_step(self) -> dict[str, float]:
        """One update of the parts that the stage trains; returns its loss terms."""
        stage = self.current
        number = (self.config.seed * 10 + stage.stream) * _STREAM + self.step
        torch.manual_seed(number)
        batch = self.batches(stage, number)
        for group in self.optimizer.param_groups:
            group["lr"] = stage.rate(group["part"], self.step)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.config.bf16):
            terms = self.model(batch, stage.losses, self.vq)
        total = torch.stack([term.float() for term in terms.values()]).sum()
        total.backward()
        # Each part by itself: a language model must not learn more slowly because a tokenizer's gradient is large.
        norms = {
            f"norm_{group['part']}": nn.utils.clip_grad_norm_(group["params"], self.config.clip)
            for group in self.optimizer.param_groups
        }
        self.optimizer.step()
        self.optimizer.zero_grad()
        if "adversarial" in terms:
            terms["discriminator"] = self._train_discriminator(batch.images, self._fake)
        self.step += 1
        self.total += 1
        return {name: float(value.detach()) for name, value in {"loss": total, **terms, **norms}.items()}

    def assess(self) -> dict[str, float]:
        """Accuracy, answer loss, PSNR and usage on validation scenes; nothing where other data is trained on."""
        if not self.config.assessed or not self.draws_scenes:
            return {}
        stage = self.current
        scenes = Scenes(stage.side, self.model.tokenizer.patch, 32, "validation", **stage.data)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.config.bf16):
            found = assess(self.model, scenes, -(-self.config.assessed // 32))
        return {
            **{"accuracy": found.accuracy, "answer_loss": found.answer_loss, "psnr": found.psnr, "usage": found.usage},
            **found.by_kind,
        }

    def save(self) -> None:
        """Write the checkpoint whole or not at all."""
        state: dict[str, Any] = {
            **{"stage": self.stage, "step": self.step, "total": self.total, "seconds": self.seconds},
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        if self.discriminator is not None:
            state["discriminator"] = self.discriminator.state_dict()
            state["discriminator_optimizer"] = self.discriminator_optimizer.state_dict()
        write_state(self.out, state)

    def resume(self) -> None:
        """Go on from `out/last.pt` if there is one."""
        state = read_state(self.out)
        if state is None:
            return
        self.stage, self.step, self.total = state["stage"], state["step"], state["total"]
        self.seconds = state["seconds"]
        self._begin()
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.discriminator is not None:
            self.discriminator.load_state_dict(state["discriminator"])
            self.discriminator_optimizer.load_state_dict(state["discriminator_optimizer"])

    def _begin(self) -> None:
        """Set up the stage at hand: what trains, and a fresh optimizer, one group for each part."""
        stage = self.stages[min(self.stage, len(self.stages) - 1)]
        stage.apply(self.model.parts)
        parts = self.model.parts
        groups = [{"params": list(parts[name].parameters()), "part": name} for name in stage.trained]
        self.optimizer = torch.optim.Adam(groups, stage.rate(stage.trained[0], 0), stage.betas, fused=True)

    def _check_words(self) -> None:
        if self.model.language.config.vocab_size != len(vocabulary()):
            raise ValueError(
                "train: expected data, a JSON or JSON Lines file of pictures with questions and answers; without it "
                f"scenes are drawn, which speak the words of micro_lvlm, not those of {self.config.language}"
            )

    def _scenes(self, stage: Stage, number: int) -> Batch:
        scenes = Scenes(stage.side, self.model.tokenizer.patch, stage.batch, **stage.data)
        return scenes.batch(number % (len(scenes.seeds) // scenes.items))

    def _conversations(self) -> Batches:
        config = self.config
        assert config.data is not None
        words = load_words(config.language)
        read = Conversations(config.data, config.images, words, prompt=config.prompt, seed=config.seed)
        return lambda stage, number: read.batch(number % _STREAM, stage.batch, stage.side, stage.stream)

    def _judged(self, images: torch.Tensor) -> torch.Tensor:
        """What the discriminator says of reconstructions, which are kept for its own step."""
        assert self.discriminator is not None
        self._fake = images.detach().float()
        judged: torch.Tensor = self.discriminator(images)
        return judged

    def _train_discriminator(self, real: torch.Tensor, fake: torch.Tensor) -> torch.Tensor:
        assert self.discriminator is not None
        loss = hinge_discriminator_loss(self.discriminator(real), self.discriminator(fake))
        self.discriminator_optimizer.zero_grad()
        loss.backward()
        self.discriminator_optimizer.step()
        return loss.detach()


def make_model(config: Training) -> EndToEnd:
    """Tokenizer, projector and language model of a run, untuned; weights of what is new from torch's generator."""
    tokenizer: Any = create("tokenizer", config.tokenizer, **config.settings)
    language = load_causal_lm(config.language)
    width = language.get_input_embeddings().weight.shape[1]
    head = VisualHead(width, tokenizer.codebook_sizes) if config.generate else None
    return EndToEnd(tokenizer, language, head=head)


def _load(model: EndToEnd, start: str) -> None:
    """What an earlier run wrote; output rows for pictures may join a model that had none.

    Raises: ValueError naming the weights that do not fit.
    """
    try:
        missing, unexpected = load_model(model, start, strict=False)
    except RuntimeError as error:  # of sizes that differ
        raise ValueError(f"start: expected weights that fit the run's model, {start}: {error}") from error
    lacking = sorted(name for name in missing if not name.startswith("head."))
    if lacking or unexpected:
        raise ValueError(
            f"start: expected weights of the run's model, {start} lacks {', '.join(lacking) or 'none'} and has "
            f"{', '.join(sorted(unexpected)) or 'none'} that it does not; take the tokenizer, the language and "
            "generate of the run that wrote it"
        )
