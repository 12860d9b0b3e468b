"""Batches of rendered scenes: pixels, what every patch shows, and packed questions with their answers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vistok.data.scenes.patch_truth import PatchTruth, patch_truth
from vistok.data.scenes.questions import KINDS, Question, questions_about
from vistok.data.scenes.readings import READINGS, readings_about
from vistok.data.scenes.render import Scene, render
from vistok.data.scenes.splits import seeds_of
from vistok.lvlm.micro import MicroSettings, make_tokenizer

SLOT_LENGTH = 15  # the longest question, 12 words, then "assistant", ":" and the answer
_HARD = ("horizontal", "vertical", "depth", "size", "count", "count_shape")  # learnt last
IGNORED = -100
ASKED = (*KINDS, *READINGS)


@dataclass(frozen=True)
class SceneBatch:
    """pixels [B, 3, S, S] float32 in -1..1; ids, labels [B, slots * SLOT_LENGTH] int64; kinds [B, slots] int64,
    places in ASKED."""

    pixels: Tensor
    truth: PatchTruth
    ids: Tensor
    labels: Tensor
    kinds: Tensor


class SceneBatches:
    """Batch number i of process r is the same in every run: its scenes are the seeds after (i * world + r) * items."""

    def __init__(self, settings: MicroSettings, items: int, slots: int, split: str = "train") -> None:
        self.settings, self.items, self.slots = settings, items, slots
        self.seeds = seeds_of(split)
        self.words = make_tokenizer().get_vocab()

    def batch(self, number: int) -> SceneBatch:
        """The batch of that number."""
        seeds = self.seeds[number * self.items : (number + 1) * self.items]
        scenes = [render(seed, self.settings.side) for seed in seeds]
        images = torch.from_numpy(np.stack([scene.image for scene in scenes])).permute(0, 3, 1, 2)
        asked = [choose_questions(scene, self.slots) for scene in scenes]
        packed = np.array([[self._slot(question) for question in questions] for questions in asked])
        ids, labels = (torch.from_numpy(packed[:, :, i].reshape(self.items, -1)) for i in (0, 1))
        kinds = torch.tensor([[ASKED.index(question.kind) for question in questions] for questions in asked])
        pixels = images.float() / 127.5 - 1
        return SceneBatch(pixels, patch_truth(scenes, self.settings.patch), ids, labels, kinds)

    def _slot(self, question: Question) -> tuple[list[int], list[int]]:
        """Token ids, and labels under the tokens that predict the answer and the end."""
        words = [*question.text.split(), "assistant", ":", question.answer]
        ids = [self.words[word] for word in words]
        fill = SLOT_LENGTH - len(ids)
        labels = [IGNORED] * (len(ids) - 2) + [ids[-1], self.words["</s>"]] + [IGNORED] * fill
        return ids + [self.words["<pad>"]] * fill, labels


def choose_questions(scene: Scene, slots: int) -> list[Question]:
    """`slots` questions about a scene: every kind and reading that can be asked once, then relations again.

    Within a kind first an answer is drawn, then a question, so that no answer is more likely than it must be.
    """
    rng = np.random.default_rng((scene.layout.seed, 3))
    by_kind: dict[str, dict[str, list[Question]]] = {}
    for question in [*questions_about(scene.layout), *readings_about(scene.layout)]:
        by_kind.setdefault(question.kind, {}).setdefault(question.answer, []).append(question)
    kinds = list(by_kind)
    again = [kind for kind in _HARD if kind in by_kind] or kinds
    order = [kinds[i] for i in rng.permutation(len(kinds))]
    order += [again[i] for i in rng.integers(len(again), size=max(0, slots - len(kinds)))]
    return [_draw(rng, list(_draw(rng, list(by_kind[kind].values())))) for kind in order[:slots]]


def _draw(rng: np.random.Generator, options: Sequence[Any]) -> Any:
    return options[int(rng.integers(len(options)))]
