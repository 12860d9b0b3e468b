"""What trainings on ids of portraits share: a frozen tokenizer, pictures to learn from and to judge by, a judge.

S pictures, N ids each, side: pixels.
"""

from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from vistok.registry import create
from vistok.train.portrait_codes import PortraitCodes, kept_portraits, pictures_of
from vistok.train.portrait_reader import PortraitReader


class PortraitTrial:
    """Pictures are encoded and the judge learns when they are first asked for; ids are kept in `out`.

    sizes: alphabets of the digits of an id.
    """

    def __init__(self, out: Path, tokenizer: str, pictures: int, held_out: int, side: int, reader_steps: int) -> None:
        """tokenizer: a preset. Raises: ValueError for one without FSQ levels."""
        built: Any = create("tokenizer", tokenizer, pretrained=True)
        self.tokenizer = built.eval().requires_grad_(False)
        self.sizes = levels_of(self.tokenizer)
        self._out, self._counts, self._side, self._reader_steps = out, (pictures, held_out), side, reader_steps

    @cached_property
    def pictures(self) -> PortraitCodes:
        """To learn from."""
        return kept_portraits(self._out / "train.safetensors", self.tokenizer, "train", self._counts[0], self._side)

    @cached_property
    def held_out(self) -> PortraitCodes:
        """To judge by."""
        return kept_portraits(self._out / "test.safetensors", self.tokenizer, "test", self._counts[1], self._side)

    @cached_property
    def real(self) -> Tensor:
        """The pictures held out behind the tokenizer, [S, 3, side, side] in [0, 1]."""
        return pictures_of(self.tokenizer, self.held_out.ids)

    @cached_property
    def reader(self) -> PortraitReader:
        """The judge, which learns from real pictures behind the tokenizer."""
        images = pictures_of(self.tokenizer, self.pictures.ids)
        return PortraitReader.learn(images, self.pictures.attributes, steps=self._reader_steps)

    def read(self, pictures: Tensor, verb: str, end: str = "") -> dict[str, float]:
        """How often the judge reads each attribute as it should be off pictures in the order of those held out."""
        right = self.reader.accuracy(pictures, self.held_out.attributes)
        return {f"{verb}_{name}{end}": value for name, value in right.items()}


def levels_of(tokenizer: Any) -> tuple[int, ...]:
    """Alphabets of a tokenizer's ids: FSQ's levels. Raises: ValueError for a tokenizer that has none."""
    levels = getattr(getattr(tokenizer, "quantizer", None), "levels", None)
    if levels is None:
        name = getattr(tokenizer, "name", type(tokenizer).__name__)
        raise ValueError(f"{name}: expected a tokenizer with FSQ levels, such as vq_nano; its ids have no digits")
    found: tuple[int, ...] = tuple(levels)
    return found
