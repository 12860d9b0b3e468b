"""Training of the explainability compressor (arXiv:2506.01097): from first-layer attention to relevance.

R* = relevance R of the visual tokens, its lowest half set to 0, divided by its sum; R~ = softmax f(A_v). The loss is
KL(R* || R~) = sum R* (log R* - log R~) with 0 log 0 = 0. The language model stays as it is: it is asked once, what it
says is kept beside the run, and each epoch goes over these pairs in an order that follows from (seed, epoch). So the
state of a run is weights, optimizer and epoch. S pairs, B of a batch, V visual tokens.
"""

import json
import math
import os
import shutil
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from vistok.registry import create
from vistok.train.checkpoint import read_state, write_state
from vistok.train.conversations import Sample, read_conversations
from vistok.train.relevance_pairs import Pairs, cached_pairs
from vistok.train.step_loop import OnStep
from vistok.weights import locate

_GROUPS = 1000


@dataclass(frozen=True)
class Training:
    """One run. model: folder of a Hugging Face vision-language model, embedded:name or hf:owner/name[@revision].

    data: file of questions and answers in LLaVA's format (`read_conversations`), images: the folder of its pictures.
    prompt, answer: how they are put to the model (`model_inputs`). samples: pairs to learn from, of questions that the
    model answers correctly. ask: questions at once. validation: share of the pictures that is held out. kept: share of
    the visual tokens that the target keeps. settings: of the compressor. cooldown: share of the epochs, at their end,
    over which the learning rate falls to 0. device: where both models work. dtype: of the language model.
    """

    out: str
    model: str = "embedded:micro_lvlm"
    data: str = ""
    images: str | None = None
    prompt: str | None = None
    answer: str = "{answer}"
    samples: int = 10_000
    ask: int = 8
    validation: float = 0.1
    kept: float = 0.5
    settings: dict[str, Any] = field(default_factory=dict)
    epochs: int = 100
    batch: int = 128
    learning_rate: float = 1e-3
    cooldown: float = 0.3
    seed: int = 0
    threads: int = 0
    device: str = "cpu"
    dtype: str = "float32"


def train(
    training: Training, on_step: OnStep | None = None, samples: Callable[[], Iterable[Sample]] | None = None
) -> dict[str, float]:
    """Ask the model, learn from its answers, write the compressor to `out/model`; returns the last epoch's metrics.

    samples: makes the questions anew, always the same ones, instead of those in `training.data`.
    """
    if training.threads:
        torch.set_num_threads(training.threads)
    if samples is None and not training.data:
        raise ValueError("train: expected data, a JSON or JSON Lines file of pictures with questions and answers")
    origin = {name: getattr(training, name) for name in ("model", "data", "images", "prompt", "answer", "samples")}
    pairs = cached_pairs(
        Path(training.out) / "pairs",
        origin,
        samples or (lambda: read_conversations(training.data, training.images)),
        lambda: load_model(training.model, training.device, training.dtype),
        wanted=training.samples,
        batch=training.ask,
    )
    trainer = Trainer(training, pairs)
    metrics = trainer.run(on_step)
    trainer.export()
    return metrics


def load_model(name: str, device: str, dtype: str) -> tuple[Any, Any]:
    """A vision-language model, frozen, and its processor. Raises: FileNotFoundError if there is no such folder."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    repository, _, revision = name.removeprefix("hf:").partition("@")
    # The hub's own client fetches the tokenizer's files, too, which `locate` leaves out.
    place = repository if name.startswith("hf:") else str(locate(name))
    options: dict[str, Any] = {"revision": revision} if name.startswith("hf:") and revision else {}
    model: Any = AutoModelForImageTextToText.from_pretrained(place, dtype=getattr(torch, dtype), **options)
    processors: Any = AutoProcessor
    return model.to(device).eval().requires_grad_(False), processors.from_pretrained(place, **options)


class Trainer:
    """Compressor, optimizer and epoch of one run; `run()` goes on from the last checkpoint in `out`."""

    def __init__(self, config: Training, pairs: Pairs) -> None:
        self.config, self.out = config, Path(config.out)
        held_out = pairs.groups % _GROUPS < config.validation * _GROUPS
        self.learned, self.held_out = (~held_out).nonzero().flatten(), held_out.nonzero().flatten()
        if not len(self.learned):
            raise ValueError(f"train: expected pairs to learn from, got {len(held_out)}, all of held-out pictures")
        self.pairs = pairs
        torch.manual_seed(config.seed)
        self.model: Any = create("pruner", "explain_compressor", **config.settings).to(config.device)
        self.optimizer = torch.optim.Adam(self.model.parameters(), config.learning_rate)
        self.epoch = self.step = 0
        self.seconds = 0.0

    def run(self, on_step: OnStep | None = None) -> dict[str, float]:
        """Go on from the last checkpoint to the last epoch, saving behind each; returns the last epoch's metrics."""
        self.out.mkdir(parents=True, exist_ok=True)
        (self.out / "config.json").write_text(json.dumps(asdict(self.config), indent=2), encoding="utf-8")
        self.resume()
        log = self.out / "metrics.jsonl"
        rows = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()] if log.is_file() else []
        rows = [row for row in rows if row["epoch"] <= self.epoch]  # what came behind the checkpoint comes again
        log.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        began = time.monotonic() - self.seconds
        while self.epoch < self.config.epochs:
            loss = self._train_epoch(on_step)
            self.seconds = time.monotonic() - began
            rows.append(
                {"epoch": self.epoch, "step": self.step, "seconds": round(self.seconds, 1), "loss": loss}
                | self.evaluate()
            )
            with open(log, "a", encoding="utf-8") as file:
                file.write(json.dumps(rows[-1]) + "\n")
            self.save()
        return rows[-1] if rows else {}

    def _train_epoch(self, on_step: OnStep | None) -> float:
        """Mean loss over all pairs, each seen once."""
        draw = torch.Generator().manual_seed(self.config.seed * 1_000_003 + self.epoch)
        order = self.learned[torch.randperm(len(self.learned), generator=draw)]
        self.model.train()
        total = 0.0
        for chosen in order.split(self.config.batch):
            attention, relevance, mask = self.batch(chosen)
            self._set_learning_rate()
            loss = relevance_kl(sparse_target(relevance, mask, self.config.kept), self.model(attention, mask))
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.step += 1
            value = float(loss.detach())
            if not math.isfinite(value):
                raise FloatingPointError(f"{self.out}: loss is {value} at step {self.step}; lower learning_rate")
            total += value * len(chosen)
            if on_step is not None:
                on_step(self.step, {"loss": value})
        self.epoch += 1
        return total / len(order)

    def _set_learning_rate(self) -> None:
        """From how many steps are done and how many there are, so that a resumed run has the same rate."""
        total = self.config.epochs * math.ceil(len(self.learned) / self.config.batch)
        falling = self.config.cooldown * total
        share = min(1.0, (total - self.step) / falling) if falling else 1.0
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.learning_rate * share

    def batch(self, chosen: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Attention, relevance and mask [B, V] of some pairs, on the device of the run."""
        rows = chosen.tolist()
        attention = pad_sequence([self.pairs.attention[row] for row in rows], batch_first=True)
        relevance = pad_sequence([self.pairs.relevance[row] for row in rows], batch_first=True)
        lengths = torch.tensor([len(self.pairs.attention[row]) for row in rows])
        mask = torch.arange(attention.shape[1]) < lengths[:, None]
        device = self.config.device
        return attention.to(device), relevance.to(device), mask.to(device)

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """On held-out pictures: the loss, and how far the better half by relevance is found; {} if there are none.

        overlap: by the compressor; attention_overlap: by what it is given. Chance is one half.
        """
        if not len(self.held_out):
            return {}
        self.model.eval()
        sums = dict.fromkeys(("held_out_loss", "overlap", "attention_overlap"), 0.0)
        for chosen in self.held_out.split(self.config.batch):
            attention, relevance, mask = self.batch(chosen)
            predicted = self.model(attention, mask)
            target = sparse_target(relevance, mask, self.config.kept)
            sums["held_out_loss"] += float(relevance_kl(target, predicted)) * len(chosen)
            sums["overlap"] += float(overlap(predicted, relevance, mask).sum())
            sums["attention_overlap"] += float(overlap(attention, relevance, mask).sum())
        return {name: value / len(self.held_out) for name, value in sums.items()}

    def save(self) -> None:
        """Write the checkpoint whole or not at all."""
        state = {
            "epoch": self.epoch,
            "step": self.step,
            "seconds": self.seconds,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        write_state(self.out, state)

    def resume(self) -> None:
        """Go on from `out/last.pt` if there is one."""
        state = read_state(self.out)
        if state is None:
            return
        self.epoch, self.step, self.seconds = state["epoch"], state["step"], state["seconds"]
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])

    def export(self) -> None:
        """Write the compressor to `out/model`, whole or not at all, for `checkpoint=`."""
        folder = self.out / "model"
        partial = folder.with_name(f"model.tmp.{os.getpid()}")
        self.model.eval().save_pretrained(partial)
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(partial, folder)


def sparse_target(relevance: Tensor, mask: Tensor, kept: float = 0.5) -> Tensor:
    """R* [B, V] of relevance [B, V] >= 0, mask [B, V] bool: what is not among the largest share `kept` is 0, sum 1.

    Of equal values the earlier ones are kept. An item whose relevance is all zero has a target of zeros.
    """
    lengths = mask.sum(1)
    best = _best(relevance, mask, lengths - (lengths * (1 - kept)).floor().long())
    values = relevance.masked_fill(~best, 0)
    total = values.sum(1, keepdim=True)
    return values / total.where(total > 0, 1)


def relevance_kl(target: Tensor, predicted: Tensor) -> Tensor:
    """Mean over items of KL(R* || R~) []; target R* [B, V], predicted log R~ [B, V], -inf where there is no token."""
    gap = torch.xlogy(target, target) - target * predicted.masked_fill(target == 0, 0)
    return gap.sum(1).mean()


def overlap(scores: Tensor, relevance: Tensor, mask: Tensor, share: float = 0.5) -> Tensor:
    """Share [B] of an item's most relevant tokens that are also among those of highest score; `share` of all each."""
    counts = (mask.sum(1) * share).round().long().clamp(min=1)
    both = _best(scores, mask, counts) & _best(relevance, mask, counts)
    return both.sum(1) / counts


def _best(values: Tensor, mask: Tensor, counts: Tensor) -> Tensor:
    """[B, V] bool: the counts [B] largest values of each item."""
    ranked = values.masked_fill(~mask, -torch.inf).argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    return (ranked < counts[:, None]) & mask
