"""Batches of rendered scenes: pixels, what every patch shows, and packed questions with their answers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vistok.data.scenes.layout import COLORS, DEPTHS, GLYPHS, MAX_THINGS, SHAPES, TEXTURES
from vistok.data.scenes.questions import KINDS, Question, questions_about
from vistok.data.scenes.readings import READINGS, readings_about
from vistok.data.scenes.render import Scene, render
from vistok.data.scenes.splits import seeds_of
from vistok.lvlm.micro import MicroSettings, make_tokenizer

SLOT_LENGTH = 15  # the longest question, 12 words, then "assistant", ":" and the answer
_HARD = ("horizontal", "vertical", "depth", "size", "count", "count_shape")  # learnt last
_LEAST_COVER = 0.15  # of a patch, from which on it shows a thing
IGNORED = -100
ASKED = (*KINDS, *READINGS)


@dataclass(frozen=True)
class PatchTruth:
    """What each patch shows, and the whole picture: the dense targets of the vision tower.

    classes: name -> [B, N] int64, 0 = nothing there; flags: name -> [B, N] float32 0 or 1; numbers [B, N, 6] float32:
    depth, radius, offset to the centre (2), place of the centre (2), each scaled to about -1..1; shown [B, N] bool.
    pairs [B, 36] float32: which colour and shape are in the picture; count [B] int64.
    """

    classes: dict[str, Tensor]
    flags: dict[str, Tensor]
    numbers: Tensor
    shown: Tensor
    pairs: Tensor
    count: Tensor


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


def patch_truth(scenes: Sequence[Scene], patch: int) -> PatchTruth:
    """The dense targets of scenes of one size."""
    parts = [_truth_of(scene, patch) for scene in scenes]

    def stacked(name: str, dtype: torch.dtype) -> Tensor:
        return torch.from_numpy(np.stack([part[name] for part in parts])).to(dtype)

    return PatchTruth(
        classes={name: stacked(name, torch.int64) for name in ("shape", "color", "texture", "glyph")},
        flags={name: stacked(name, torch.float32) for name in ("center", "nearest", "farthest")},
        numbers=stacked("numbers", torch.float32),
        shown=stacked("shown", torch.bool),
        pairs=stacked("pairs", torch.float32),
        count=stacked("count", torch.int64),
    )


def _truth_of(scene: Scene, patch: int) -> dict[str, NDArray[Any]]:
    things = scene.layout.things
    side = len(scene.image)
    cells = side // patch
    grid = scene.masks.reshape(len(things), cells, patch, cells, patch)
    cover = grid.mean(axis=(2, 4)).reshape(len(things), -1)
    owner = cover.argmax(axis=0)
    shown = cover.max(axis=0) >= _LEAST_COVER
    classes = {
        "shape": [SHAPES.index(thing.shape) + 1 for thing in things],
        "color": [COLORS.index(thing.color) + 1 for thing in things],
        "texture": [TEXTURES.index(thing.texture) + 1 for thing in things],
        "glyph": [0 if thing.glyph is None else GLYPHS.index(thing.glyph) + 1 for thing in things],
    }
    truth = {name: np.where(shown, np.array(values)[owner], 0) for name, values in classes.items()}
    centres = np.array([(thing.x, thing.y) for thing in things])
    rows, columns = np.divmod(np.arange(cells * cells), cells)
    places = (np.stack((columns, rows), axis=1) + 0.5) / cells
    home = np.floor(np.clip(centres[:, ::-1], 0, 0.999) * cells).astype(int) @ np.array([cells, 1])
    depth = (np.array([thing.depth for thing in things]) - np.mean(DEPTHS)) / 2
    radius = np.array([thing.radius for thing in things]) * 10 - 1
    numbers = np.column_stack((depth[owner], radius[owner], (centres[owner] - places) * 5, centres[owner] * 2 - 1))
    pairs = np.zeros(len(COLORS) * len(SHAPES))
    pairs[scene.class_ids] = 1
    return {
        **truth,
        "center": shown & (home[owner] == np.arange(cells * cells)),
        "nearest": shown & (owner == 0),
        "farthest": shown & (owner == len(things) - 1),
        "numbers": numbers,
        "shown": shown,
        "pairs": pairs,
        "count": np.array(len(things)),
    }


CLASS_SIZES = {
    "shape": len(SHAPES) + 1,
    "color": len(COLORS) + 1,
    "texture": len(TEXTURES) + 1,
    "glyph": len(GLYPHS) + 1,
}
FLAGS = ("center", "nearest", "farthest")
NUMBERS = 6
PAIRS, COUNTS = len(COLORS) * len(SHAPES), MAX_THINGS + 1
