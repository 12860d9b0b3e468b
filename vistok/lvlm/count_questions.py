"""How many things of a colour or a shape a scene has: asked directly, and with tokens of the place of each one first.

Texts are in the words that the micro LVLM knows. A span is "(", column, row, ")": the cell of a coarse grid in which
the centre of one thing lies. AURORA (arXiv:2412.03548, counting) writes whole boxes of fine pixels; two codes a thing
are half as many tokens, and telling things apart takes no more.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vistok.data.scenes.layout import COLORS, SHAPES, Layout, Thing, make_layout
from vistok.data.scenes.questions import balanced_questions, questions_about
from vistok.lvlm.vocabulary import TokenFamily

KINDS = ("count_color", "count_shape")
# The list ends with a word that micro_lvlm has given as an answer: its frozen head can tell that from others.
LIST_END = "no"
_ASKED = tuple(f"{color} things" for color in COLORS) + tuple(f"{shape} shapes" for shape in SHAPES)
_MOST = 6  # spans of a made-up list; no question has more than four

Cell = tuple[int, int]


@dataclass(frozen=True)
class CountQuestion:
    """One question about the scene of `seed`; answer: the number; chain: spans, the end of the list, the number.

    codes: local codes of the true spans, column and row of each in turn.
    """

    seed: int
    text: str
    answer: str
    chain: str
    codes: tuple[int, ...]
    kind: str

    @property
    def conclusion(self) -> str:
        """What the chain says behind its list."""
        return self.answer

    @property
    def points(self) -> int:
        """How many things there are."""
        return len(self.codes) // 2

    def read(self, codes: Sequence[int]) -> str | None:
        """The number of spans that codes make; None if they do not come in pairs."""
        return None if len(codes) % 2 else str(len(codes) // 2)


class CountTexts:
    """Questions in words, with the strings of a family. Every draw depends on the scene's seed and a number."""

    answer_words = 1

    def __init__(self, family: TokenFamily) -> None:
        """Raises: ValueError if the family has not one marker before and one behind its codes."""
        if len(family.begin) != 1 or len(family.end) != 1:
            raise ValueError(
                f"family {family.name!r}: expected one marker before and one behind codes, got {list(family.begin)} "
                f"and {list(family.end)}"
            )
        self.family = family
        self.made_up_points = tuple(range(_MOST + 1))

    def listed(self, cells: Sequence[Cell]) -> str:
        """Spans of cells in their order, and the end of the list."""
        begin, end, codes = self.family.begin[0], self.family.end[0], self.family.codes
        return " ".join([*(f"{begin} {codes[column]} {codes[row]} {end}" for column, row in cells), LIST_END])

    def generation(self, layout: Layout, number: int) -> tuple[str, str] | None:
        """Which things of a colour or a shape there are, and the list of their places."""
        drawn = self._drawn(layout, 7, number)
        if drawn is None:
            return None
        text, _ = drawn
        return text.replace("how many", "what"), self.listed(self._cells(layout.things, text))

    def question(self, layout: Layout, number: int) -> CountQuestion | None:
        """How many there are of a colour or a shape, n of them n + 1 times as likely as none."""
        drawn = self._drawn(layout, 8, number)
        return None if drawn is None else self.about(layout, *drawn)

    def about(self, layout: Layout, text: str, kind: str) -> CountQuestion:
        """The question with its chain, from a text of `questions_about`."""
        return self._question(layout.seed, text, kind, self._cells(layout.things, text))

    def made_up(
        self, rng: np.random.Generator, count: int, points: int | None = None, ease: float = 0.0
    ) -> list[CountQuestion]:
        """Questions with lists of drawn cells, so many or any number of them; an `ease` above 0 makes lists shorter."""
        most = round(_MOST - (_MOST - 2) * ease)
        found = []
        for _ in range(count):
            text = f"how many {_ASKED[rng.integers(len(_ASKED))]} are there ?"
            spans = int(rng.integers(most + 1)) if points is None else points
            cells = [(int(x), int(y)) for x, y in rng.integers(len(self.family.codes), size=(spans, 2))]
            found.append(self._question(-1, text, _kind(text), sorted(cells)))
        return found

    def _drawn(self, layout: Layout, stream: int, number: int) -> tuple[str, str] | None:
        rng = np.random.default_rng((layout.seed, stream, number))
        asked = [question for question in questions_about(layout) if question.kind in KINDS]
        if not asked:
            return None
        answers = sorted({question.answer for question in asked})
        # Else scenes with several of a kind, which are few, would hardly ever be asked for them.
        weights = np.array([int(answer) + 1 for answer in answers])
        answer = answers[rng.choice(len(answers), p=weights / weights.sum())]
        fitting = [question for question in asked if question.answer == answer]
        chosen = fitting[rng.integers(len(fitting))]
        return chosen.text, chosen.kind

    def _question(self, seed: int, text: str, kind: str, cells: Sequence[Cell]) -> CountQuestion:
        answer = str(len(cells))
        codes = tuple(code for cell in cells for code in cell)
        return CountQuestion(seed, text, answer, f"{self.listed(cells)} {answer}", codes, kind)

    def _cells(self, things: Sequence[Thing], text: str) -> list[Cell]:
        """Cells of the things asked for, left to right, those of a column from the top."""
        word, side = text.split()[2], len(self.family.codes)
        asked = [thing for thing in things if word in (thing.color, thing.shape)]
        return sorted((min(side - 1, int(thing.x * side)), min(side - 1, int(thing.y * side))) for thing in asked)


def count_questions(texts: CountTexts, count: int, *, split: str = "test") -> list[CountQuestion]:
    """`count` questions, each about a scene of its own, colours and shapes in turn, every number equally often."""
    asked = balanced_questions(split, count, KINDS)
    return [texts.about(make_layout(question.seed), question.text, question.kind) for question in asked]


def _kind(text: str) -> str:
    return "count_shape" if text.split()[2] in SHAPES else "count_color"
