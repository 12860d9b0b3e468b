"""Which of some things of a scene is nearest or farthest: asked directly, and with a depth token for each thing first.

Texts are in the words that the micro LVLM knows. A depth span here is START, one code, END, the depth of one thing: a
map of one place, since a whole one takes a hundred tokens. Reasoning and direct records are those of `DepthCoT`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vistok.data.perception.depth_questions import DepthCoT, DepthPicture, DepthTemplates
from vistok.data.perception.markers import Marker
from vistok.data.perception.records import Record
from vistok.data.perception.scene_points import SCENE_RULES, made_up_points, nearness_code, scene_points
from vistok.data.scenes.layout import Layout, make_layout
from vistok.data.scenes.splits import seeds_of
from vistok.lvlm.vocabulary import TokenFamily

_EASY = 0.5  # contrast of the easiest made-up depths
_LEVELS = 8  # of the words with which micro_lvlm says how far a thing is, 1 the nearest
KINDS = ("nearest", "farthest")
# A conclusion repeats what was asked in words that micro_lvlm has given as answers: the rows of its head for those that
# it never gave ("nearest", "farthest") are all but equal, and its frozen head cannot tell them apart.
REPEATED = {"nearest": "nearer", "farthest": "farther"}


@dataclass(frozen=True)
class PointQuestion:
    """One question about the scene of `seed`; answer: the name of the right point; chain: spans, then the answer.

    names, codes: of every point in the order of the question, codes the true local ones; points: how many.
    """

    seed: int
    text: str
    answer: str
    chain: str
    names: tuple[str, ...]
    codes: tuple[int, ...]
    kind: str

    @property
    def conclusion(self) -> str:
        """What the chain says behind its last span."""
        return f"{REPEATED[self.kind]} {self.answer}"

    @property
    def points(self) -> int:
        return len(self.codes)

    def read(self, codes: Sequence[int]) -> str | None:
        """The name that codes give when compared, of equal ones the first; None if there are not as many."""
        if len(codes) != self.points:
            return None
        chosen = max(codes) if self.kind == "nearest" else min(codes)
        return self.names[list(codes).index(chosen)]


class PointTexts:
    """Questions in words, with the strings of a depth family. Every draw depends on the scene's seed and a number."""

    answer_words = 2
    made_up_points: tuple[int, ...] = (2, 3)

    def __init__(self, family: TokenFamily) -> None:
        """Raises: ValueError if the family has not one marker before and one behind its codes."""
        if len(family.begin) != 1 or len(family.end) != 1:
            raise ValueError(
                f"family {family.name!r}: expected one marker before and one behind codes, got {list(family.begin)} "
                f"and {list(family.end)}"
            )
        self.family = family
        # The word that says what to look for stands right before the answer, where a model compares the codes.
        self._records = {kind: self._texts(f"what is {kind} ?", f" {REPEATED[kind]} {{name}}", kind) for kind in KINDS}
        self._generation = self._texts("how far ?", "")

    def span(self, nearness_value: float) -> str:
        """START, the code of a nearness in 0..1, END."""
        code = nearness_code(nearness_value, len(self.family.codes))
        return f"{self.family.begin[0]} {self.family.codes[code]} {self.family.end[0]}"

    def generation(self, layout: Layout, number: int) -> tuple[str, str] | None:
        """How far some points are, and their spans. None if the scene has no fitting points."""
        markers = scene_points(layout, np.random.default_rng((layout.seed, 5, number)))
        if markers is None:
            return None
        made = self._generation.reasoning(_picture(layout.seed), markers)
        assert made is not None
        return _asked(made), _said(made)

    def question(self, layout: Layout, number: int) -> PointQuestion | None:
        """Which point is nearest (even numbers) or farthest (odd ones). None if the scene has no fitting points."""
        markers = scene_points(layout, np.random.default_rng((layout.seed, 6, number)))
        return None if markers is None else self.about(markers, KINDS[number % 2], layout.seed)

    def about(self, markers: Sequence[Marker], kind: str, seed: int = -1) -> PointQuestion:
        """The question of a kind about points, of the scene of `seed` or, as `made_up_points` are, of none."""
        records, picture = self._records[kind], _picture(seed)
        direct, chain = records.direct(picture, markers), records.reasoning(picture, markers)
        assert direct is not None and chain is not None
        codes = tuple(nearness_code(marker.depth, len(self.family.codes)) for marker in markers)
        names = tuple(marker.name for marker in markers)
        return PointQuestion(seed, _asked(direct), _said(direct), _said(chain), names, codes, kind)

    def made_up(
        self, rng: np.random.Generator, count: int, points: int | None = None, ease: float = 0.0
    ) -> list[PointQuestion]:
        """Questions about drawn names and depths, two or three in all of them, nearest and farthest equally likely.

        ease: 1 for depths far apart, 0 for the contrast of scenes.
        """
        points = int(rng.choice(self.made_up_points)) if points is None else points
        contrast = max(SCENE_RULES.contrast, _EASY * ease)
        made = [made_up_points(rng, points, contrast) for _ in range(count)]
        return [self.about(markers, KINDS[rng.integers(len(KINDS))]) for markers in made]

    def _texts(self, question: str, conclusion: str, kind: str = "nearest") -> DepthCoT:
        def span(marker: Marker) -> str:
            return self.span(marker.depth)

        texts = DepthTemplates(
            direct=f"{question} {{points}}",
            direct_answer="{name}",
            reasoning=f"{question} {{points}}",
            reasoning_answer=f"{{readings}}{conclusion}",
            # Things are told by their names: letters in front of them would be two more hops from code to answer.
            point="{name}",
            # "far" goes first: a causal model must know what to fetch before it reads of which thing.
            reading="far {name} {code}",
            between=" ",
        )
        return DepthCoT(lambda depth: "", texts, SCENE_RULES, farthest=kind == "farthest", reading=span)


def point_questions(texts: PointTexts, count: int, *, split: str = "test", each: int = 3) -> list[PointQuestion]:
    """`count` questions, at most `each` about a scene; the same for the same arguments."""
    found: list[PointQuestion] = []
    for seed in seeds_of(split):
        layout = make_layout(seed)
        drawn = [texts.question(layout, number + seed) for number in range(each)]
        found += [question for question in drawn if question is not None]
        if len(found) >= count:
            break
    return found[:count]


def level_weights(codes: int, words: Mapping[str, int]) -> tuple[Tensor, Tensor]:
    """Start of code rows from the words of levels, 1 the nearest: weights [codes, 8] and ids [8] for `anchored`.

    words: a tokenizer's `get_vocab()`. The first code is the farthest, so it starts as the highest level.
    """
    places = (torch.arange(codes - 1, -1, -1) + 0.5) / codes * _LEVELS - 0.5
    weights = (1 - (places[:, None] - torch.arange(_LEVELS)).abs()).clamp(min=0)
    return weights / weights.sum(1, keepdim=True), torch.tensor([words[str(level)] for level in range(1, _LEVELS + 1)])


def _picture(seed: int) -> DepthPicture:
    return DepthPicture(f"scene_{seed}", np.empty((0, 0)))  # its map is not asked for


def _asked(record: Record) -> str:
    text: str = record["conversations"][0]["value"]
    return text.removeprefix("<image>\n")


def _said(record: Record) -> str:
    return str(record["conversations"][1]["value"])
