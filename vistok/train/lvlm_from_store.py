"""A vision-language model learns to answer questions about pictures that it gets as ids of a token store.

Pictures are tokenized once, by `vistok encode`, and never decoded here: the codes of their tokenizer become rows of the
language model's vocabulary (as in SEED-LLaMA, arXiv:2310.01218), so the result is a model and a processor that
transformers loads, and a picture reaches it as `<img> <img_00017> ... </img>`. The model's own vision tower and
projector stay as they are, for pictures as pixels.

Started by itself this is one process; `accelerate launch` or `torchrun` start several. All of them share every global
batch, and gradients are those of its mean loss per answered token, so their number changes speed and not what is
learned: a run that was killed goes on with any number, at the sample it had come to at its last checkpoint.
"""

import copy
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vistok.data.batching import LengthBuckets
from vistok.data.mixed_stream import MixedStream, Portion
from vistok.data.mixture import Draw
from vistok.data.store import TokenStore
from vistok.train.checkpoint import read_state, write_state
from vistok.train.metrics_log import append_row, drop_rows_after
from vistok.train.optimizers import adamw, warm_cosine
from vistok.train.step_loop import OnStep, run_steps

_QUESTIONS, _PAIR = "questions", ("question", "answer")
_SAMPLES = "samples.jsonl"


@dataclass(frozen=True)
class Training:
    """One run. stores: of one tokenizer, discrete with one codebook, whose rows have a column `questions` (a list of
    {question, answer}, as `vistok data scenes` writes it) or the columns `question` and `answer`.

    weights: of the stores, their sizes if not given. start: what `load_lvlm` takes. batch: samples of a global batch,
    over all processes; pool: batches whose samples are sorted by length together; micro_batch: samples of a forward
    pass. questions: at most so many about a picture, others in each round. threads: of each process, 0 = as torch
    decides (models of this size are several times faster with one). log_samples: keep store, round and key of every
    sample in `out/samples.jsonl`.
    """

    out: str
    stores: list[str] = field(default_factory=list)
    weights: list[float] | None = None
    start: str = "micro_lvlm"
    steps: int = 1000
    batch: int = 16
    pool: int = 32
    micro_batch: int = 16
    questions: int = 6
    rate: float = 1e-3
    warmup: int = 50
    weight_decay: float = 0.01
    clip: float = 1.0
    seed: int = 0
    threads: int = 1
    log_samples: bool = False
    save_every: int = 100
    log_every: int = 20

    def __post_init__(self) -> None:
        """Raises: ValueError naming the setting that is out of range."""
        if not self.stores:
            raise ValueError("train: expected stores, as a list of folders that `vistok encode` wrote, got none")
        for name in ("steps", "batch", "pool", "micro_batch", "questions"):
            if getattr(self, name) < 1:
                raise ValueError(f"train: expected {name} >= 1, got {getattr(self, name)}")


def train(training: Training, on_step: OnStep | None = None) -> dict[str, float]:
    """Run a recipe and write model and processor to `out/model`; goes on from the last checkpoint in `out`.

    Returns the last logged metrics, in the first process of several; loss and accuracy are those of answered tokens in
    a training batch, which in the first epoch the model has not seen before.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(training.threads or threads)
    try:
        trainer = Trainer(training)
        metrics = run_steps(trainer, on_step, writes=trainer.accelerator.is_main_process)
        if trainer.accelerator.is_main_process:
            trainer.export()
        trainer.accelerator.wait_for_everyone()
        trainer.accelerator.end_training()
    finally:
        torch.set_num_threads(threads)
    return metrics


class Trainer:
    """Model, optimizer, stream of samples and step of one process of a run."""

    def __init__(self, config: Training) -> None:
        """Raises: ValueError if the stores do not go together or have no questions; as `load_lvlm` does."""
        from accelerate import Accelerator

        from vistok.lvlm.image_dialogue_collator import ImageDialogueCollator
        from vistok.lvlm.load import load_lvlm
        from vistok.lvlm.new_rows import attach
        from vistok.lvlm.row_starts import normal
        from vistok.lvlm.token_families import seed

        self.config, self.out = config, Path(config.out)
        # Left to itself it takes processes without a GPU for strangers to one another.
        self.accelerator = Accelerator(cpu=not torch.accelerator.is_available())
        stores = [TokenStore(path) for path in config.stores]
        codes = _codes(stores)
        self.stream = MixedStream(
            stores,
            LengthBuckets(config.batch, config.pool),
            weights=config.weights,
            seed=config.seed,
            rank=self.accelerator.process_index,
            world=self.accelerator.num_processes,
            collate=list,
        )
        self.model, self.processor = load_lvlm(config.start)
        draw = torch.Generator().manual_seed(config.seed)
        attachment = attach(self.processor.tokenizer, self.model, [seed(codes)], start=normal(), generator=draw)
        positions = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        self.collator = ImageDialogueCollator(self.processor, attachment.maps["seed"], positions)
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_("vision_tower" not in name and "multi_modal_projector" not in name)
        self.model.train()
        [optimizer] = adamw(self.model, config.rate, config.weight_decay)
        self.prepared, self.optimizer = self.accelerator.prepare(self.model, optimizer)
        self.portions = self._portions()
        self.step, self.seconds = 0, 0.0

    def train_step(self) -> dict[str, float]:
        """One update from the mean loss per answered token of a global batch; returns it, and how many were right."""
        config, accelerator = self.config, self.accelerator
        portion = next(self.portions)
        self._log_samples(portion)
        parts = self._parts(portion)
        here = sum(int((part["labels"][:, 1:] >= 0).sum()) for part in parts)
        answered = float(self._over_all(torch.tensor(float(here))))
        told = torch.zeros(2)
        for number, part in enumerate(parts, 1):
            # Only the last pass of a step talks to the other processes.
            with nullcontext() if number == len(parts) else accelerator.no_sync(self.prepared):
                loss, right = self._loss(part)
                # DDP takes the mean over processes, and the loss is a sum over all of them.
                accelerator.backward(loss * accelerator.num_processes / answered)
            told += torch.stack((loss.detach(), right)).cpu()
        norm = accelerator.clip_grad_norm_(self.model.parameters(), config.clip)
        for group in self.optimizer.param_groups:
            group["lr"] = warm_cosine(config.rate, self.step, config.steps, config.warmup, floor=0.1)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        loss_sum, right_sum = self._over_all(told).tolist()
        return {
            "loss": loss_sum / answered,
            "accuracy": right_sum / answered,
            "norm": float(norm),
            "epoch": float(self.stream.epoch),
        }

    def save(self) -> None:
        """Write the checkpoint whole or not at all: what every process needs to go on, whatever their number."""
        state = {
            "step": self.step,
            "seconds": self.seconds,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "stream": self.stream.state_dict(),
        }
        write_state(self.out, state)

    def resume(self) -> None:
        """Go on from `out/last.pt` if there is one. Raises: ValueError if it is of other stores or another order."""
        state = read_state(self.out)
        if state is not None:
            self.step, self.seconds = state["step"], state["seconds"]
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.stream.load_state_dict(state["stream"])
        if self.accelerator.is_main_process:
            drop_rows_after(self.out / _SAMPLES, self.step)

    def export(self) -> None:
        """Write model in float16 and processor to `out/model`, whole or not at all."""
        folder = self.out / "model"
        partial = folder.with_name(f"{folder.name}.tmp.{os.getpid()}")
        copy.deepcopy(self.model).eval().half().save_pretrained(partial)
        self.processor.save_pretrained(partial)
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(partial, folder)

    def _portions(self) -> Iterator[Portion]:
        while True:
            yield from self.stream

    def _parts(self, portion: Portion) -> list[dict[str, Tensor]]:
        """Forward passes of this process: one at least, since all of them must meet."""
        size = self.config.micro_batch
        dialogues = [
            (tokens, self._turns(draw)) for tokens, draw in zip(portion.tokens or (), portion.draws, strict=True)
        ]
        starts = range(0, len(dialogues), size)
        parts = [self.collator(dialogues[start : start + size]) for start in starts] or [self._nothing()]
        return [{name: value.to(self.accelerator.device) for name, value in part.items()} for part in parts]

    def _nothing(self) -> dict[str, Tensor]:
        one = torch.zeros(1, 2, dtype=torch.int64)
        return {"input_ids": one, "attention_mask": one + 1, "labels": one - 100}

    def _loss(self, part: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Sum of the loss over answered tokens, and how many of them the model would have said."""
        logits = self.prepared(input_ids=part["input_ids"], attention_mask=part["attention_mask"]).logits
        logits, labels = logits[:, :-1].float().flatten(0, 1), part["labels"][:, 1:].flatten()
        right = (logits.argmax(-1) == labels).sum()
        # Adding 0 times all logits keeps the graph whole where nothing is asked.
        loss = F.cross_entropy(logits, labels, reduction="sum", ignore_index=-100) + 0 * logits.sum()
        return loss, right.float()

    def _turns(self, draw: Draw) -> list[Any]:
        from vistok.lvlm.image_dialogue_collator import Turn

        turns = [Turn(*pair) for pair in _asked(self.stream.row(draw), self.stream.stores[draw.store])]
        chosen = np.random.default_rng([self.config.seed, *draw]).permutation(len(turns))[: self.config.questions]
        return [turns[place] for place in sorted(chosen.tolist())]

    def _log_samples(self, portion: Portion) -> None:
        if not self.config.log_samples:
            return
        from accelerate.utils import gather_object

        here = [[draw.store, draw.round, self.stream.key(draw)] for draw in portion.draws]
        found = gather_object(here)
        if self.accelerator.is_main_process:
            append_row(self.out / _SAMPLES, {"step": self.step + 1, "samples": found})

    def _over_all(self, values: Tensor) -> Tensor:
        total: Any = self.accelerator.reduce(values.to(self.accelerator.device), "sum")
        return torch.as_tensor(total).cpu()


def _codes(stores: Sequence[TokenStore]) -> int:
    """The size of the one codebook that all stores have."""
    sizes = set()
    for store in stores:
        if not len(store):
            raise ValueError(f"{store.location}: expected a store with samples, got none; `vistok encode` first")
        spec = store[0].spec
        if len(spec.codebook_sizes) != 1 or "indices" not in store.columns:
            raise ValueError(
                f"{store.location}: expected ids of one codebook, {store.tokenizer} has {len(spec.codebook_sizes)} and "
                f"the store the columns {', '.join(store.columns)}; encode with a discrete tokenizer such as seed_nano"
            )
        _asked(store.rows[0], store)
        sizes.add(spec.codebook_sizes[0])
    if len({store.fingerprint for store in stores}) != 1:
        names = ", ".join(f"{store.location} ({store.tokenizer} {store.fingerprint[:8]})" for store in stores)
        raise ValueError(f"train: expected stores of one tokenizer, whose codes mean the same, got {names}")
    return int(sizes.pop())


def _asked(row: dict[str, Any], store: TokenStore) -> list[tuple[str, str]]:
    """Questions and answers of a row. Raises: ValueError naming store and sample if it has none."""
    listed = row.get(_QUESTIONS) or ([row] if all(row.get(name) for name in _PAIR) else [])
    pairs = [(str(one["question"]), str(one["answer"])) for one in listed]
    if not pairs:
        raise ValueError(
            f"{store.location}, {row['key']}: expected a column {_QUESTIONS} (a list of question and answer) or the "
            f"columns {' and '.join(_PAIR)}, got {', '.join(row)}; encode a table that has them, such as the data set "
            "of `vistok data scenes`"
        )
    return pairs
