"""Training of the micro LVLM on rendered scenes: first the tower on dense truth, then everything on questions.

One process per core with averaged gradients: on small models far faster than one process with as many threads. Muon
(torch.optim) on the matrices of the layers, AdamW on the rest. A step's scenes come from its number, so a run that is
stopped goes on as if it had not been.
"""

import json
import os
import shutil
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from vistok.data.scenes.questions import KINDS
from vistok.lvlm.micro import MicroSettings, make_model, make_processor
from vistok.lvlm.packed_questions import NAME, packed_positions
from vistok.train.checkpoint import read_state, write_state
from vistok.train.data_parallel import average_gradients, side_processes
from vistok.train.dense_heads import DenseHeads, GlobalHead, norm_error
from vistok.train.metrics_log import append_row, drop_rows_after
from vistok.train.optimizers import restore
from vistok.train.scene_batches import ASKED, IGNORED, SLOT_LENGTH, SceneBatch, SceneBatches
from vistok.train.step_loop import OnStep


@dataclass(frozen=True)
class Training:
    """One run. tower_steps: steps of the tower alone; steps: all of them; the rate falls to 0 over the last third.

    batch: scenes a step and process; processes: one core each. dense_tower, dense_projected, norms: loss weights of the
    second stage.
    """

    out: str
    model: MicroSettings = field(default_factory=MicroSettings)
    tower_steps: int = 1500
    steps: int = 12_000
    tower_batch: int = 32
    batch: int = 16
    questions: int = 20
    processes: int = 2
    matrix_rate: float = 3e-3
    rate: float = 2e-3
    warmup: int = 100
    weight_decay: float = 0.01
    clip: float = 1.0
    dense_tower: float = 0.3
    dense_projected: float = 0.5
    norms: float = 0.1
    seed: int = 0
    save_every: int = 200
    log_every: int = 20
    validate_every: int = 400


class Heads(nn.Module):
    """Helps to train and is not shipped: dense heads on the tower and behind the projector, one on the class token."""

    def __init__(self, model: MicroSettings) -> None:
        super().__init__()
        self.tower = DenseHeads(model.vision_width)
        self.projected = DenseHeads(model.text_width)
        self.picture = GlobalHead(model.vision_width)


class Trainer:
    """Model, heads, optimizers and step of one process of a run; `run()` goes on from the last checkpoint in `out`."""

    def __init__(self, config: Training, rank: int = 0) -> None:
        self.config, self.rank, self.out = config, rank, Path(config.out)
        torch.manual_seed(config.seed)
        self.model = make_model(config.model)
        self.model.model.language_model.config._attn_implementation = NAME
        # Backward through torch's fused attention on a CPU is several times slower than plain products at this size.
        self.model.model.vision_tower.config._attn_implementation = "eager"
        self.heads = Heads(config.model)
        self.named = {**dict(self.model.named_parameters()), **dict(self.heads.named_parameters(prefix="heads"))}
        matrices = [p for name, p in self.named.items() if _is_matrix(name, p)]
        others = [p for name, p in self.named.items() if not _is_matrix(name, p)]
        self.optimizers: list[torch.optim.Optimizer] = [
            torch.optim.Muon(
                matrices, config.matrix_rate, weight_decay=config.weight_decay, adjust_lr_fn="match_rms_adamw"
            ),
            torch.optim.AdamW(others, config.rate, (0.9, 0.98), weight_decay=config.weight_decay, fused=True),
        ]
        self.tower_batches = SceneBatches(config.model, config.tower_batch, 1)
        self.batches = SceneBatches(config.model, config.batch, config.questions)
        self.words = self.batches.words
        self.step, self.seconds = 0, 0.0

    def run(self, on_step: OnStep | None = None) -> dict[str, float]:
        """Train to the last step; returns the last metrics."""
        config, metrics = self.config, dict[str, float]()
        self.resume()
        if self.rank == 0:
            drop_rows_after(self.out / "metrics.jsonl", self.step)
        began = time.monotonic() - self.seconds
        while self.step < config.steps:
            values = self.train_step()
            self.seconds = time.monotonic() - began
            last = self.step == config.steps
            if last or (self.step > config.tower_steps and self.step % config.validate_every == 0):
                values |= self.validate()
            if self.rank == 0:
                if self.step % config.log_every == 0 or last:
                    metrics = {"step": self.step, "seconds": round(self.seconds, 1), **values}
                    append_row(self.out / "metrics.jsonl", {name: round(value, 5) for name, value in metrics.items()})
                if self.step % config.save_every == 0 or last:
                    self.save()
            if on_step is not None:
                on_step(self.step, values)
        return metrics

    def train_step(self) -> dict[str, float]:
        """One update from the average gradient of all processes; returns this process's loss terms."""
        config = self.config
        tower_only = self.step < config.tower_steps
        source = self.tower_batches if tower_only else self.batches
        # The stages draw from far apart seeds, so that no scene comes twice.
        number = (self.step + (10_000_000 if tower_only else 0)) * config.processes + self.rank
        batch = source.batch(number)
        for optimizer, rate in zip(self.optimizers, (config.matrix_rate, config.rate), strict=True):
            for group in optimizer.param_groups:
                group["lr"] = rate * self.rate_factor()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            terms = self.tower_losses(batch) if tower_only else self.losses(batch)
        total = torch.stack(list(terms.values())).sum()
        total.backward()
        norm = average_gradients(self.named.values(), config.clip)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        self.step += 1
        return {"loss": float(total.detach()), "norm": norm, **{k: float(v.detach()) for k, v in terms.items()}}

    def tower_losses(self, batch: SceneBatch) -> dict[str, Tensor]:
        """Loss terms of the first stage."""
        features = self.model.model.vision_tower(batch.pixels).last_hidden_state
        patches = features[:, 1:]
        return {
            "tower": self.heads.tower.loss(patches, batch.truth),
            "picture": self.heads.picture.loss(features[:, 0], batch.truth),
            "tower_norms": self.config.norms * norm_error(patches),
        }

    def losses(self, batch: SceneBatch) -> dict[str, Tensor]:
        """Loss terms of the second stage."""
        config = self.config
        features = self.model.model.vision_tower(batch.pixels).last_hidden_state
        patches = features[:, 1:]
        visual = self.model.model.multi_modal_projector(patches)
        logits, labels = self.answer_logits(visual, batch, self.dropped(batch))
        return {
            "answer": F.cross_entropy(logits, labels),
            "tower": config.dense_tower * self.heads.tower.loss(patches, batch.truth),
            "projected": config.dense_projected * self.heads.projected.loss(visual, batch.truth),
            "picture": config.dense_tower * self.heads.picture.loss(features[:, 0], batch.truth),
            "tower_norms": config.norms * norm_error(patches),
            "projected_norms": config.norms * norm_error(visual),
        }

    def dropped(self, batch: SceneBatch) -> Tensor:
        """Visual tokens to hide, [B, N] bool: of the background only, in about half the pictures, a random share.

        Without it the model reads counts off background tokens, and no pruner could tell what matters by looking.
        """
        draw = torch.Generator().manual_seed(self.step * self.config.processes + self.rank)
        share = (2 * torch.rand(len(batch.pixels), 1, generator=draw) - 1).clamp(min=0)
        return ~batch.truth.shown & (torch.rand(batch.truth.shown.shape, generator=draw) < share)

    def answer_logits(self, visual: Tensor, batch: SceneBatch, dropped: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Logits [M, V] float32 where a label stands, and the labels [M]; dropped [B, N] bool is hidden."""
        language = self.model.model.language_model
        embed = language.embed_tokens
        start = torch.tensor([self.words[word] for word in ("<s>", "user", ":")])
        items = len(visual)
        sequence = torch.cat((embed(start).expand(items, -1, -1), visual, embed(batch.ids)), dim=1)
        prefix = len(start) + visual.shape[1]
        hidden = language(
            inputs_embeds=sequence,
            position_ids=packed_positions(items, prefix, batch.kinds.shape[1], SLOT_LENGTH),
            packing=(prefix, SLOT_LENGTH),
            dropped=None if dropped is None else F.pad(dropped, (len(start), 0)),
            use_cache=False,
        ).last_hidden_state[:, prefix:]
        asked = batch.labels != IGNORED
        return self.model.lm_head(hidden[asked]).float(), batch.labels[asked]

    @torch.no_grad()
    def validate(self, batches: int = 8) -> dict[str, float]:
        """Accuracy of first answer words over validation scenes, by kind, and the mean of the tested kinds."""
        source = SceneBatches(self.config.model, 32, self.config.questions, "validation")
        right, asked = torch.zeros(len(ASKED)), torch.zeros(len(ASKED))
        for number in range(self.rank, batches, self.config.processes):
            batch = source.batch(number)
            with torch.autocast("cpu", dtype=torch.bfloat16):
                visual = self.model.model.multi_modal_projector(
                    self.model.model.vision_tower(batch.pixels).last_hidden_state[:, 1:]
                )
                logits, labels = self.answer_logits(visual, batch)
            hits = (logits.argmax(-1) == labels).float()[::2]  # every second label is the end
            right.index_add_(0, batch.kinds.flatten(), hits)
            asked.index_add_(0, batch.kinds.flatten(), torch.ones_like(hits))
        if dist.is_initialized():
            dist.all_reduce(right)
            dist.all_reduce(asked)
        by_kind = (right / asked.clamp(min=1)).tolist()
        tested = by_kind[: len(KINDS)]
        return {"accuracy": sum(tested) / len(tested), **dict(zip(ASKED, by_kind, strict=True))}

    def rate_factor(self) -> float:
        """Linear warm-up of each stage, then 1, then down to 0 over the last third."""
        config = self.config
        since = self.step - config.tower_steps if self.step >= config.tower_steps else self.step
        left = (config.steps - self.step) / (config.steps / 3)
        return min(1.0, (since + 1) / max(1, config.warmup), left)

    def save(self) -> None:
        """Write the checkpoint whole or not at all."""
        state = {
            "step": self.step,
            "seconds": self.seconds,
            "model": self.model.state_dict(),
            "heads": self.heads.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
        }
        write_state(self.out, state)

    def resume(self) -> None:
        """Go on from `out/last.pt` if there is one."""
        state = read_state(self.out)
        if state is not None:
            self.step, self.seconds = state["step"], state["seconds"]
            self.model.load_state_dict(state["model"])
            self.heads.load_state_dict(state["heads"])
            restore(self.optimizers, state["optimizers"])


def train(training: Training, on_step: OnStep | None = None) -> dict[str, float]:
    """Run a recipe in `training.processes` processes and write model and processor to `out/model`.

    Returns the last logged metrics. This process is the first of them and computes on one thread meanwhile.
    """
    out = Path(training.out)
    out.mkdir(parents=True, exist_ok=True)
    (out / "config.json").write_text(json.dumps(asdict(training), indent=2), encoding="utf-8")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with side_processes(training.processes, _follow, training):
            trainer = Trainer(training)
            metrics = trainer.run(on_step)
    finally:
        torch.set_num_threads(threads)
    export(trainer.model, training.model, out / "model")
    return metrics


def export(model: Any, settings: MicroSettings, folder: Path) -> None:
    """Write the model as float16 safetensors and its processor, as transformers loads them, whole or not at all."""
    exported = make_model(settings)
    exported.load_state_dict(model.state_dict())
    partial = folder.with_name(f"{folder.name}.tmp.{os.getpid()}")
    exported.half().save_pretrained(partial)  # type: ignore[no-untyped-call]
    make_processor(settings).save_pretrained(partial)
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(partial, folder)


def _follow(rank: int, training: Training) -> None:
    Trainer(training, rank).run()


def _is_matrix(name: str, parameter: Tensor) -> bool:
    return parameter.ndim == 2 and (".layers." in name or "multi_modal_projector" in name)
