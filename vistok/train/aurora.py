"""A small vision-language model learns to write perception tokens before it answers (AURORA, arXiv:2412.03548).

New rows for a family of spans and LoRA on the language model of `micro_lvlm`; tower, projector and old rows are frozen.
Generation samples say how far named things of a scene are, each as START, one code, END, or where things of a colour or
a shape are; reasoning samples ask which is nearest or farthest, or how many there are. With `chain` the answer says the
span of every thing first, without it the name or number alone; all else is equal: scenes, questions, order, steps.
Few scenes reason, many generate, in the order of `CurriculumSampler`. To compare codes or to count spans can be learned
before, without pictures (`aurora_conclusions`). A step follows from its number, so a
stopped run goes on as if it had not been.
"""

import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from vistok.metrics.accuracy import accuracy
from vistok.train.aurora_samples import Packed, Slots, usable_scenes, visual_tokens
from vistok.train.curriculum import CurriculumSampler
from vistok.train.made_up_conclusions import MadeUpConclusions
from vistok.train.metrics_log import append_row, last_row
from vistok.train.perception_adapter import BASE, AdapterOptimizers, PerceptionAdapter, resume_stage, write_stage
from vistok.train.step_loop import OnStep, run_steps


@dataclass(frozen=True)
class Training:
    """One run. chain: spans before the answer, or the answer alone. asks: about depths, or how many things there are.

    codes: of the family of spans. pictures: scenes of generation; reasoning: scenes of reasoning; both from another
    stretch of seeds for every `seed`; questions: of each, in one sequence. fractions: generation's share of each epoch
    of steps * batch / len(fractions) scenes. begin: a run with as many codes and the same rank whose rows and adapter
    are the start, such as one of conclusions or of generation alone, which all that follow can share. start: of code
    rows in the head, "words" between the words of distances, "codebook" along one line, as those of the embedding
    then are too, or "waves" in both, each apart from the rest. rank: of LoRA. rate: of LoRA; head_rate: of new rows of
    the head, which start far from where they end; embedding_rate: of those of the embedding, low, or codes of a line
    would leave it before anything compares them; all fall to 0 over the last third. conclusion: weight of the loss on
    the answer alone, which in a chain is few of its tokens. made_up: questions of `aurora_conclusions` in every step,
    or what was learned there would be forgotten; copied: as there. bf16: of products, as autocast. features: folder in
    which visual tokens are kept for other runs, that of the run if not given. test_questions: asked at the end.
    """

    out: str
    chain: bool = True
    asks: Literal["depths", "counts"] = "depths"
    codes: int = 16
    pictures: int = 400
    reasoning: int = 60
    questions: int = 8
    batch: int = 4
    steps: int = 150
    fractions: tuple[float, ...] = (1.0, 0.4, 0.1)
    order: Literal["blocks", "shuffled_epoch"] = "blocks"
    begin: str | None = None
    start: Literal["words", "codebook", "waves"] = "words"
    rank: int = 12
    rate: float = 2e-3
    head_rate: float = 2e-2
    embedding_rate: float = 3e-4
    conclusion: float = 1.0
    made_up: int = 0
    copied: float = 0.1
    warmup: int = 20
    clip: float = 1.0
    bf16: bool = False
    features: str | None = None
    test_questions: int = 240
    seed: int = 0
    threads: int = 0
    save_every: int = 50
    log_every: int = 10


def train(training: Training, on_step: OnStep | None = None) -> dict[str, float]:
    """Run a recipe; writes to `out/model` what `load_perception` takes. Returns the last metrics with test accuracy."""
    if training.threads:
        torch.set_num_threads(training.threads)
    trainer = Trainer(training)
    row = trainer.run(on_step)
    trainer.export()
    if "accuracy" not in row and training.test_questions:
        row = row | tested(trainer.out / "model", training.test_questions)
        append_row(trainer.out / "metrics.jsonl", row)
    return last_row(trainer.out / "metrics.jsonl")


class Trainer:
    """Model, adapter, optimizer and step of one run; `run()` goes on from the last checkpoint in `out`."""

    def __init__(self, config: Training) -> None:
        """Raises: ValueError if steps and batch leave no epoch, the sampler refuses the sets, made_up lacks a chain."""
        if config.made_up and not config.chain:
            raise ValueError(
                f"train: expected made_up 0 with chain: false, got {config.made_up}; made-up questions have no "
                "picture, so without a chain nothing says the answer"
            )
        self.config, self.out = config, Path(config.out)
        total = config.steps * config.batch // len(config.fractions)
        sets = (config.pictures, max(1, config.reasoning))
        self.sampler = CurriculumSampler(sets, total, config.fractions, config.order, config.seed)
        if bool(sum(self.sampler.reasoning)) != bool(config.reasoning):
            raise ValueError(
                f"train: expected epochs of {total} scenes to have room for all {config.reasoning} scenes of "
                f"reasoning, got {sum(self.sampler.reasoning)} times one; more steps, a larger batch or fewer scenes "
                "help, and without reasoning every fraction is 1"
            )
        self.indices = list(self.sampler)
        self.host = PerceptionAdapter(config.codes, config.rank, config.seed, config.start, config.asks)
        if config.begin is not None:
            self.host.begin(config.begin)
        first = config.seed * 10 * (config.pictures + config.reasoning)
        scenes = config.pictures + config.reasoning
        self.layouts = usable_scenes(self.host.texts, first, scenes, config.questions)
        self.conclusions = MadeUpConclusions(self.host, copied=config.copied, bf16=config.bf16)
        self.slots = Slots(self.host.processor.tokenizer, self.host.texts, config.questions, chain=config.chain)
        self.visual = self._visual()
        self.optimizers = AdapterOptimizers(self.host, config)
        self.step, self.seconds = 0, 0.0

    def run(self, on_step: OnStep | None = None) -> dict[str, float]:
        """Go on from the last checkpoint to the last step, saving on the way; returns the last logged metrics."""
        return run_steps(self, on_step)

    def train_step(self) -> dict[str, float]:
        """One update; returns the loss, which share of its scenes reasoned and of their conclusions was right."""
        config = self.config
        places = [(self.step * config.batch + place) % len(self.indices) for place in range(config.batch)]
        chosen = [self.indices[place] for place in places]
        reasoning = [index >= config.pictures for index in chosen]
        packed = self.slots.packed([self.layouts[index] for index in chosen], reasoning)
        loss, concluded = self.loss(self.visual[chosen].float(), packed)
        loss = loss + self._made_up_loss()
        self.optimizers.update(loss, self.step)
        self.step += 1
        return {
            "loss": float(loss.detach()),
            "reasoning": sum(reasoning) / len(reasoning),
            "concluded": float(concluded),
        }

    def loss(self, visual: Tensor, packed: Packed) -> tuple[Tensor, Tensor]:
        """Loss [] of answers to questions about visual [B, N, D], and the share of right conclusions [].

        Cross-entropy over all tokens of answers, depth tokens as any word, plus that over conclusions.
        """
        from vistok.lvlm.packed_questions import packed_positions
        from vistok.lvlm.relevance import IGNORED

        model, items = self.host.model, len(visual)
        embed = model.get_input_embeddings()
        sequence = torch.cat((embed(self.host.lead).expand(items, -1, -1), visual, embed(packed.ids)), 1)
        prefix, length = len(self.host.lead) + visual.shape[1], packed.slot_length
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.config.bf16):
            hidden = model.model.language_model(
                inputs_embeds=sequence,
                position_ids=packed_positions(items, prefix, packed.ids.shape[1] // length, length),
                packing=(prefix, length),
                use_cache=False,
            ).last_hidden_state[:, prefix:]
        asked = packed.labels != IGNORED
        logits = model.lm_head(hidden[asked].float())
        labels, concluding = packed.labels[asked], packed.concluding[asked]
        each = F.cross_entropy(logits, labels, reduction="none")
        conclusions = concluding.sum().clamp(min=1)
        concluded = (logits.argmax(-1) == labels)[concluding].sum() / conclusions
        return each.mean() + self.config.conclusion * each[concluding].sum() / conclusions, concluded

    def _made_up_loss(self) -> Tensor | float:
        config, rng = self.config, np.random.default_rng((self.config.seed, self.step))
        if not config.made_up:
            return 0.0
        return self.conclusions.loss(self.host.texts.made_up(rng, config.made_up))[0]

    def save(self) -> None:
        """Write the checkpoint whole or not at all."""
        write_stage(self)

    def resume(self) -> None:
        """Go on from `out/last.pt` if there is one."""
        resume_stage(self)

    def export(self) -> None:
        """Write rows and low-rank matrices to `out/model`, whole or not at all; this ends the training of the object.

        Rows are kept in float16, since they are read off the merged model in half precision.
        """
        from vistok.lvlm.low_rank_files import export_low_rank
        from vistok.lvlm.perception_model import ADAPTER, ROWS, SETTINGS
        from vistok.lvlm.row_files import export_rows

        folder = self.out / "model"
        partial = folder.with_name(f"model.tmp.{os.getpid()}")
        partial.mkdir(parents=True, exist_ok=True)
        export_low_rank(partial / ADAPTER, self.host.adapted)
        self.host.adapted.merge_and_unload()
        export_rows(partial / ROWS, self.host.model.half(), self.host.attachment)
        settings = {"base": BASE, "family": self.host.family.name, "chain": self.config.chain}
        (partial / SETTINGS).write_text(json.dumps(settings | {"recipe": _recipe(self.config)}, indent=2))
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(partial, folder)

    def _visual(self) -> Tensor:
        """Visual tokens of all scenes of the run, kept beside it or where `features` says."""
        config = self.config
        folder = self.out if config.features is None else Path(config.features)
        seeds = [layout.seed for layout in self.layouts]
        file = folder / f"visual_{seeds[0]}_{seeds[-1]}_{len(seeds)}.safetensors"
        if not file.is_file():
            folder.mkdir(parents=True, exist_ok=True)
            partial = file.with_suffix(f".tmp.{os.getpid()}")
            save_file({"visual": visual_tokens(self.host.model, self.host.processor, self.layouts)}, partial)
            os.replace(partial, file)
        return load_file(file)["visual"]


def tested(model: Path, questions: int) -> dict[str, float]:
    """Accuracy of a trained model on test scenes, by its own answers."""
    from vistok.lvlm.perception_model import load_perception
    from vistok.lvlm.perception_rows import asked_of, chain_rows
    from vistok.lvlm.replacement_test import OWN, answer_direct

    host = load_perception(model)
    asked = asked_of(host, questions)
    said = chain_rows(host, asked, replaced=False)[OWN] if host.settings["chain"] else answer_direct(host, asked)
    right = accuracy([one.answer == question.answer for one, question in zip(said, asked, strict=True)])
    return {"accuracy": right.accuracy}


def _recipe(config: Training) -> dict[str, Any]:
    return {name: value for name, value in asdict(config).items() if name not in ("out", "features", "threads")}
