"""What a perception model is asked, by what it is about: depths of things, or how many there are."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from vistok.data.scenes.layout import Layout
from vistok.lvlm import token_families
from vistok.lvlm.count_questions import CountTexts
from vistok.lvlm.point_questions import PointTexts
from vistok.lvlm.vocabulary import TokenFamily


class PerceptionQuestion(Protocol):
    """A question about the scene of `seed`, its answer, and the chain of spans that ends with a conclusion.

    codes: the true local ones; points: how many spans; kind: for tables.
    """

    @property
    def seed(self) -> int: ...
    @property
    def text(self) -> str: ...
    @property
    def answer(self) -> str: ...
    @property
    def chain(self) -> str: ...
    @property
    def conclusion(self) -> str: ...
    @property
    def codes(self) -> tuple[int, ...]: ...
    @property
    def kind(self) -> str: ...
    @property
    def points(self) -> int: ...
    def read(self, codes: Sequence[int]) -> str | None:
        """The answer that a program gets from codes of spans."""
        ...


class PerceptionTexts(Protocol):
    """Questions with the strings of a family. answer_words: of every answer; made_up_points: numbers of spans."""

    answer_words: int
    family: TokenFamily
    made_up_points: tuple[int, ...]

    def generation(self, layout: Layout, number: int) -> tuple[str, str] | None:
        """A question for spans alone, and these. None if the scene has nothing to ask for."""
        ...

    def question(self, layout: Layout, number: int) -> PerceptionQuestion | None:
        """A question to conclude something from spans. None if the scene has nothing to ask for."""
        ...

    def made_up(
        self, rng: np.random.Generator, count: int, points: int | None = None, ease: float = 0.0
    ) -> Sequence[PerceptionQuestion]:
        """`count` questions about no scene, with so many spans or a drawn number; ease: 1 the easiest, 0 as asked."""
        ...


def perception_texts(asks: str, codes: int) -> PerceptionTexts:
    """Texts about "depths" or "counts" with a family of so many codes. Raises: ValueError for anything else."""
    if asks == "depths":
        return PointTexts(token_families.depth(codes))
    if asks == "counts":
        return CountTexts(token_families.cells(codes))
    raise ValueError(f"asks: expected depths or counts, got {asks!r}")
