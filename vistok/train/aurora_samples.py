"""Scenes with packed questions for AURORA: samples of generation and of reasoning, as ids and labels.

A sample is a scene with S questions, all about depths or all about what is nearest. T tokens of a slot, N visual
tokens of a scene, D their width.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vistok.data.scenes.layout import Layout, make_layout
from vistok.data.scenes.splits import seeds_of
from vistok.lvlm.perception_texts import PerceptionTexts
from vistok.lvlm.relevance import IGNORED

Slot = tuple[list[int], list[int]]  # ids and labels, as long as question and answer are


@dataclass(frozen=True)
class Packed:
    """ids, labels [B, S T] int64, slots padded on the right to T; a label stands under the token that predicts it.

    concluding [B, S T] bool: where the words of the answer are predicted.
    """

    ids: Tensor
    labels: Tensor
    concluding: Tensor
    slot_length: int


def usable_scenes(texts: PerceptionTexts, first: int, count: int, questions: int) -> list[Layout]:
    """The next `count` training scenes from the split's seed number `first` on that have so many questions."""
    found: list[Layout] = []
    for seed in seeds_of("train")[first:]:
        layout = make_layout(seed)
        kinds = (texts.generation, texts.question)
        if all(make(layout, number) is not None for make in kinds for number in range(questions)):
            found.append(layout)
            if len(found) == count:
                return found
    raise ValueError(f"train: expected {count} scenes behind number {first}, the split ended")


class Slots:
    """Samples of scenes as slots of ids. chain: whether reasoning says spans before the label."""

    def __init__(self, tokenizer: Any, texts: PerceptionTexts, questions: int, *, chain: bool) -> None:
        self.texts, self.questions, self.chain = texts, questions, chain
        self._tokenizer = tokenizer
        self._kept: dict[tuple[int, bool], list[Slot]] = {}

    def packed(self, layouts: Sequence[Layout], reasoning: Sequence[bool]) -> Packed:
        """Samples of scenes; reasoning: whether each asks what is nearest, or else only for depths."""
        rows = [self._slots(layout, asks) for layout, asks in zip(layouts, reasoning, strict=True)]
        length = max(len(ids) for row in rows for ids, _ in row)
        fills = (int(self._tokenizer.pad_token_id), IGNORED)
        ids, labels = (
            torch.tensor([[i for slot in row for i in _filled(slot[part], length, fill)] for row in rows])
            for part, fill in enumerate(fills)
        )
        ends = (labels == self._tokenizer.eos_token_id) & torch.tensor(reasoning)[:, None]
        words = range(1, self.texts.answer_words + 1)
        return Packed(ids, labels, torch.stack([ends.roll(-place, 1) for place in words]).any(0), length)

    def _slots(self, layout: Layout, reasoning: bool) -> list[Slot]:
        key = (layout.seed, reasoning)
        if key not in self._kept:
            numbers = range(self.questions)
            self._kept[key] = [self._slot(*self._answered(layout, reasoning, number)) for number in numbers]
        return self._kept[key]

    def _answered(self, layout: Layout, reasoning: bool, number: int) -> tuple[str, str]:
        found = self.texts.question(layout, number) if reasoning else self.texts.generation(layout, number)
        if found is None:
            raise ValueError(f"scene {layout.seed}: expected one with points, as usable_scenes gives them")
        if isinstance(found, tuple):
            return found
        return found.text, found.chain if self.chain else found.answer

    def _slot(self, question: str, answer: str) -> Slot:
        asked = self._ids(f"{question} assistant :")
        said = [*self._ids(answer), int(self._tokenizer.eos_token_id)]
        return asked + said, [IGNORED] * (len(asked) - 1) + said + [IGNORED]

    def _ids(self, text: str) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=False).input_ids)


def _filled(values: list[int], length: int, fill: int) -> list[int]:
    return values + [fill] * (length - len(values))


def visual_tokens(model: Any, processor: Any, layouts: Sequence[Layout], batch: int = 50) -> Tensor:
    """What the frozen tower and projector make of scenes, [len(layouts), N, D] float16."""
    from PIL import Image

    from vistok.data.scenes.render import render
    from vistok.lvlm.prompting import encode_pictures
    from vistok.lvlm.scene_questions import scene_side

    side, found = scene_side(processor), []
    with torch.no_grad():
        for start in range(0, len(layouts), batch):
            images = [Image.fromarray(render(layout, side).image) for layout in layouts[start : start + batch]]
            found.append(torch.stack(encode_pictures(model, processor, images)).half())
    return torch.cat(found)
