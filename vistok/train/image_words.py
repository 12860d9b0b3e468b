"""A small language model learns to name and to draw scenes in ids of its own vocabulary (the recipe of SEED-LLaMA,
arXiv:2310.01218, on a scale of minutes).

First the model alone learns to write captions. Then the codes of a small visual vocabulary are attached to it, it is
frozen, and LoRA and the new rows learn on pairs of picture and caption, in either order: picture first is naming,
caption first is drawing. Every draw of a step comes from (seed, step), so a stopped run goes on as if it had not been.

The slow test's 250 steps on 600 pictures, 100 held out, before -> after: colours named 0 -> 96 % (chance 17), sizes and
textures about by chance; of what is drawn the judge reads the colour asked for in 20 -> 73 % (96 on real pictures) and
the size in 47 -> 85 % (87). The 1600 steps of `configs/train/image_words.yaml` (4000 pictures, 200 held out, five
minutes): named colour 99.5 %, size 83, shape 32 (chance 17), texture 34 (chance); drawn colour 81 % (99.5 on real
pictures), size 78 (94), shape 23 (48), texture 36 (63). So colours and sizes are learned, shapes hardly: pictures are
blots of the right colour in a fitting background, of patches of 16 pixels that do not join.
"""

import json
import os
import shutil
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from vistok.data.scenes.captions import caption, describe
from vistok.data.scenes.layout import make_layout
from vistok.data.scenes.portraits import portrait
from vistok.data.scenes.render import render
from vistok.data.scenes.splits import seeds_of
from vistok.train.checkpoint import read_state, write_state
from vistok.train.image_word_starts import word_start
from vistok.train.metrics_log import append_row
from vistok.train.naming_and_drawing import drawing, naming, picture_sheet
from vistok.train.optimizers import update
from vistok.train.patch_codes import PatchCodes
from vistok.train.portrait_reader import PortraitReader, attributes_of
from vistok.train.step_loop import OnStep, run_steps

_PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
_CAPTIONS_FROM = 1_000_000  # the first seed of scenes that the base model reads about, far from those it sees


@dataclass(frozen=True)
class Training:
    """One run. model: sizes of the language model. base_steps: on captions alone; steps: those of base_steps included.

    side, patch: pixels; codes: of the visual vocabulary, codebook_rounds: batches they are learned on. pictures: to
    learn from; held_out: to judge by. start: of new rows, one of `image_word_starts.STARTS`; anchors: words for each
    code if that is "omp". rank: of LoRA. mask_first: learn only what comes second. reader_steps: of the judge.
    reverse_ratio: pairs with the picture first, more than half of them since their captions are short and so weigh
    little in the loss. learning rates fall to 0 over the last third.
    """

    out: str
    model: dict[str, Any] = field(default_factory=dict)
    side: int = 64
    patch: int = 16
    codes: int = 512
    codebook_rounds: int = 60
    pictures: int = 4000
    held_out: int = 200
    base_steps: int = 200
    steps: int = 1600
    batch: int = 32
    base_rate: float = 3e-3
    rate: float = 3e-3
    warmup: int = 30
    weight_decay: float = 0.01
    clip: float = 1.0
    start: str = "omp"
    anchors: int = 4
    rank: int = 32
    reverse_ratio: float = 0.7
    mask_first: bool = True
    reader_steps: int = 400
    seed: int = 0
    threads: int = 0
    save_every: int = 200
    log_every: int = 50


class Pictures(NamedTuple):
    """codes [S, N] int64 and captions of pictures."""

    codes: Tensor
    captions: list[str]


def train(training: Training, on_step: OnStep | None = None) -> dict[str, float]:
    """Run a recipe; writes to `out/model` what transformers loads, the codebook, and to `out/drawn.png` pictures.

    Returns the last metrics: name_* how often an attribute is named, draw_* how often it is read off what was drawn,
    read_* how often it is read off real pictures behind the codes, and accuracy, the mean of name_*.
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
    """Language model, adapter, optimizer and step of one run; `run()` goes on from the last checkpoint in `out`."""

    def __init__(self, config: Training) -> None:
        from vistok.lvlm.tiny_llama import TinySettings, make_tiny_llama

        if not 0 < config.base_steps < config.steps:
            raise ValueError(f"train: expected 0 < base_steps < steps, got {config.base_steps} and {config.steps}")
        self.config, self.out = config, Path(config.out)
        train_images, train_captions = _portraits("train", config.pictures, config.side)
        held_images, held_captions = _portraits("test", config.held_out, config.side)
        self.codes = PatchCodes.learn(
            train_images, config.codes, config.patch, rounds=config.codebook_rounds, seed=config.seed
        )
        self.train_pictures = Pictures(_indices(self.codes, train_images), train_captions)
        self.held_out = Pictures(_indices(self.codes, held_images), held_captions)
        torch.manual_seed(config.seed)
        self.model, self.tokenizer = make_tiny_llama(TinySettings(**config.model))
        self.base: dict[str, Tensor] | None = None
        self.trained: Any = self.model
        self.optimizer = self._adamw()
        self.step, self.seconds = 0, 0.0

    def run(self, on_step: OnStep | None = None) -> dict[str, float]:
        """Go on from the last checkpoint to the last step, saving on the way; returns the last logged metrics."""
        return run_steps(self, on_step, measure=self._measured)

    def attach(self) -> None:
        """End of the first stage: the visual vocabulary joins, the model freezes, adapter and new rows are trained."""
        from peft import LoraConfig, get_peft_model

        from vistok.lvlm.image_text_collator import ImageTextCollator
        from vistok.lvlm.new_rows import attach
        from vistok.lvlm.row_training import trainable_token_settings
        from vistok.lvlm.token_families import seed

        config = self.config
        self.base = {name: value.clone() for name, value in self.model.state_dict().items()}
        draw = torch.Generator().manual_seed(config.seed)
        start = word_start(
            config.start, self.tokenizer, *self.train_pictures, codebook=self.codes.codebook, anchors=config.anchors
        )
        self.attachment = attach(self.tokenizer, self.model, [seed(config.codes)], start=start, generator=draw)
        self.vocabulary = self.attachment.maps["seed"]
        settings = trainable_token_settings(self.model, self.attachment)
        torch.manual_seed(config.seed)
        self.trained = get_peft_model(
            self.model,
            LoraConfig(r=config.rank, lora_alpha=2 * config.rank, target_modules=_PROJECTIONS, **settings),
        )
        self.collator = ImageTextCollator(
            self.tokenizer, self.vocabulary, config.reverse_ratio, config.mask_first, generator=draw
        )
        self.optimizer = self._adamw()

    def _measured(self, due: bool) -> dict[str, float]:
        return self.held_out_losses() if due and self.base is not None else {}

    def train_step(self) -> dict[str, float]:
        """One update, behind the end of the first stage if that is due; returns the loss."""
        if self.step == self.config.base_steps and self.base is None:
            self.attach()
        loss = self.trained(**self._batch()).loss
        trained = [parameter for parameter in self.trained.parameters() if parameter.requires_grad]
        update([self.optimizer], loss, trained, self.learning_rate(), self.config.clip)
        self.step += 1
        return {"loss": float(loss.detach())}

    def learning_rate(self) -> float:
        """Of the stage: linear warm-up, then level, then down to 0 over the last third."""
        config = self.config
        base = self.base is None
        since = self.step if base else self.step - config.base_steps
        length = config.base_steps if base else config.steps - config.base_steps
        return (config.base_rate if base else config.rate) * min(
            1.0, (since + 1) / max(1, config.warmup), 3 * (length - since) / length
        )

    @torch.no_grad()
    def held_out_losses(self) -> dict[str, float]:
        """Loss over all held-out pictures, and its two halves: naming_loss with the picture first, drawing_loss."""
        from vistok.lvlm.image_text_collator import ImageTextCollator

        pairs = list(zip(*self.held_out, strict=True))
        found = {}
        for name, ratio in (("naming_loss", 1.0), ("drawing_loss", 0.0)):
            collate = ImageTextCollator(self.tokenizer, self.vocabulary, ratio, self.config.mask_first)
            losses = [
                float(self.trained(**collate(pairs[place : place + 50])).loss) for place in range(0, len(pairs), 50)
            ]
            found[name] = sum(losses) / len(losses)
        return {"held_out_loss": sum(found.values()) / 2, **found}

    def judge(self) -> dict[str, float]:
        """What the model names and draws on held-out pictures by now; writes `out/drawn.png`, real ones above."""
        generator = torch.Generator().manual_seed(self.config.seed)
        named = naming(self.trained, self.tokenizer, self.vocabulary, *self.held_out)
        drawn = drawing(self.trained, self.tokenizer, self.vocabulary, *self.held_out, generator=generator)
        reader, asked = self.reader, attributes_of(self.held_out.captions)
        real, pictures = self.codes.decode(self.held_out.codes), self.codes.decode(drawn)
        picture_sheet(self.out / "drawn.png", real, pictures)
        found = {
            "name": named,
            "draw": reader.accuracy(pictures, asked),
            "read": reader.accuracy(real, asked),
        }
        metrics = {f"{verb}_{name}": value for verb, values in found.items() for name, value in values.items()}
        return {"step": self.step, "accuracy": sum(named.values()) / len(named), **metrics}

    @cached_property
    def reader(self) -> PortraitReader:
        """The judge of drawn pictures, which learns from real ones when it is first asked."""
        images = self.codes.decode(self.train_pictures.codes)
        shown = attributes_of(self.train_pictures.captions)
        return PortraitReader.learn(images, shown, steps=self.config.reader_steps)

    def save(self) -> None:
        """Write the checkpoint whole or not at all."""
        trained = {name: value for name, value in self.trained.named_parameters() if value.requires_grad}
        state = {
            "step": self.step,
            "seconds": self.seconds,
            "base": self.base,
            "trained": {name: value.detach() for name, value in trained.items()},
            "optimizer": self.optimizer.state_dict(),
        }
        write_state(self.out, state)

    def resume(self) -> None:
        """Go on from `out/last.pt` if there is one."""
        state = read_state(self.out)
        if state is None:
            return
        self.step, self.seconds = state["step"], state["seconds"]
        if state["base"] is not None:
            self.model.load_state_dict(state["base"])
            self.attach()
        with torch.no_grad():
            own = dict(self.trained.named_parameters())
            for name, value in state["trained"].items():
                own[name].copy_(value)
        self.optimizer.load_state_dict(state["optimizer"])

    def export(self) -> None:
        """Write language model, tokenizer and codebook to `out/model` and the new rows beside it, whole or not at all.

        The adapter is merged into the model, so this ends the training of this object.
        """
        from vistok.lvlm.row_files import export_rows

        self.trained.merge_and_unload()
        folder = self.out / "model"
        partial = folder.with_name(f"model.tmp.{os.getpid()}")
        self.model.save_pretrained(partial)
        self.tokenizer.save_pretrained(partial)
        save_file({"codebook": self.codes.codebook.contiguous()}, partial / "codebook.safetensors")
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(partial, folder)
        export_rows(self.out / "new_rows.safetensors", self.model, self.attachment)

    def _batch(self) -> dict[str, Tensor]:
        config = self.config
        if self.base is None:
            first = seeds_of("train")[_CAPTIONS_FROM + self.step * config.batch]
            # Whole scenes and single things in turn, since both kinds of caption follow.
            layouts = [make_layout(first + place) for place in range(config.batch)]
            texts = [
                caption(layout) if place % 2 else describe(layout.things[0]) for place, layout in enumerate(layouts)
            ]
            made = self.tokenizer(
                [f"{text} {self.tokenizer.eos_token}" for text in texts],
                padding=True,
                padding_side="right",
                return_tensors="pt",
            )
            labels = made.input_ids.masked_fill(made.attention_mask == 0, -100)
            return {"input_ids": made.input_ids, "attention_mask": made.attention_mask, "labels": labels}
        draw = self.collator.generator.manual_seed(config.seed * 1_000_003 + self.step)
        chosen = torch.randint(len(self.train_pictures.codes), (config.batch,), generator=draw).tolist()
        return self.collator([(self.train_pictures.codes[i], self.train_pictures.captions[i]) for i in chosen])

    def _adamw(self) -> torch.optim.AdamW:
        trained = [parameter for parameter in self.trained.parameters() if parameter.requires_grad]
        return torch.optim.AdamW(
            trained, self.config.rate, (0.9, 0.95), weight_decay=self.config.weight_decay, fused=True
        )


def _portraits(split: str, count: int, side: int) -> tuple[Tensor, list[str]]:
    layouts = [portrait(seed) for seed in seeds_of(split)[:count]]
    images = np.stack([render(layout, side).image for layout in layouts])
    captions = [describe(layout.things[0]) for layout in layouts]
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255, captions


def _indices(codes: PatchCodes, images: Tensor) -> Tensor:
    indices = codes.encode(images).indices
    assert indices is not None
    return indices
