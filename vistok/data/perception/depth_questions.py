"""Depth as questions: say the map, name the nearest point, and name it after saying points and map (arXiv:2412.03548).

Texts are ours; every one can be replaced. S side of the pictures in pixels.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vistok.data.perception.markers import Marker, MarkerRules, farthest, nearest, place_markers
from vistok.data.perception.records import Record, picture_rng, record

DepthText = Callable[[NDArray[Any]], str]


class DepthPicture(NamedTuple):
    """image: path as a record names it; depth [S, S], 0..255, larger is nearer; marked: path of the marked picture."""

    image: str
    depth: NDArray[Any]
    marked: str | None = None


@dataclass(frozen=True)
class DepthTemplates:
    """Texts with {labels}, {points}, {side}; answers with {points}, {depth}, {readings}, {label} and {name} as well.

    {which} is "closest to" and {most} "highest", or "farthest from" and "lowest" where the farthest is asked for.
    point, reading: one point in {points} and in {readings}, with {label}, {x}, {y}, {name}, {code}; the latter is what
    `DepthCoT(reading=...)` says of it.
    """

    generation: str = "Write down the depth map of this picture."
    generation_answer: str = "{depth}"
    direct: str = "The circled points are {labels}. Which of them is {which} the camera?"
    direct_answer: str = "({label})"
    reasoning: str = (
        "The circled points are {labels}. Which of them is {which} the camera? Go step by step: the picture is "
        "{side} x {side} pixels; say where each point is, write down the depth map, then compare the map's values "
        "there, where a higher value is nearer."
    )
    reasoning_answer: str = "{points}. The depth map is {depth}. Its value is {most} at point {label}: ({label})"
    point: str = "Point {label} is located at (x = {x} y = {y})"
    reading: str = "{label} {code}"
    between: str = ", "


def _no_reading(marker: Marker) -> str:
    return ""


@dataclass(frozen=True)
class DepthQA:
    """Records without reasoning. encode: a depth map as text; farthest: ask for the farthest point instead."""

    encode: DepthText
    templates: DepthTemplates = field(default_factory=DepthTemplates)
    rules: MarkerRules = field(default_factory=MarkerRules)
    farthest: bool = False
    seed: int = 0

    def generation(self, picture: DepthPicture) -> Record:
        """The map as text."""
        answer = self.templates.generation_answer.format(depth=self.encode(picture.depth))
        return record(picture.image, self.templates.generation, answer, kind="depth_generation", seed=self.seed)

    def direct(self, picture: DepthPicture, markers: Sequence[Marker] | None = None) -> Record | None:
        """The label of the nearest point; None if the picture has no place for points."""
        chosen = markers_on(picture, self.rules, self.seed) if markers is None else markers
        return None if chosen is None else self._answered(picture, chosen, "direct", self._fields(picture, chosen))

    def _fields(self, picture: DepthPicture, markers: Sequence[Marker]) -> dict[str, str]:
        texts = self.templates
        points = [texts.point.format(label=m.label, x=m.x, y=m.y, name=m.name, code="") for m in markers]
        right = farthest(markers) if self.farthest else nearest(markers)
        return {
            "labels": texts.between.join(sorted(marker.label for marker in markers)),
            "points": texts.between.join(points),
            "side": str(len(picture.depth)),
            "which": "farthest from" if self.farthest else "closest to",
            "most": "lowest" if self.farthest else "highest",
            "label": right.label,
            "name": right.name,
        }

    def _answered(self, picture: DepthPicture, markers: Sequence[Marker], kind: str, fields: dict[str, str]) -> Record:
        question, answer = getattr(self.templates, kind), getattr(self.templates, f"{kind}_answer")
        return record(
            picture.marked or picture.image,
            question.format(**{name: value for name, value in fields.items() if name not in ("label", "name")}),
            answer.format(**fields),
            kind=f"depth_{kind}",
            seed=self.seed,
            label=fields["label"],
            markers=[[marker.label, marker.x, marker.y, marker.depth] for marker in markers],
        )


@dataclass(frozen=True)
class DepthCoT(DepthQA):
    """Records that say points and depth map before the answer. reading: what is said of a point by {code}."""

    reading: Callable[[Marker], str] = _no_reading

    def reasoning(self, picture: DepthPicture, markers: Sequence[Marker] | None = None) -> Record | None:
        """Points, map, conclusion; None if the picture has no place for points."""
        chosen = markers_on(picture, self.rules, self.seed) if markers is None else markers
        if chosen is None:
            return None
        texts = self.templates
        read = [texts.reading.format(label=m.label, x=m.x, y=m.y, name=m.name, code=self.reading(m)) for m in chosen]
        fields = self._fields(picture, chosen) | {"readings": texts.between.join(read)}
        if "{depth}" in texts.reasoning_answer:
            fields["depth"] = self.encode(picture.depth)
        return self._answered(picture, chosen, "reasoning", fields)

    def alternating(self, pictures: Iterable[DepthPicture]) -> Iterator[Record]:
        """For every picture with points a record with reasoning and a direct one, about the same points."""
        for picture in pictures:
            found = (self.reasoning(picture), self.direct(picture))
            yield from (one for one in found if one is not None)


def markers_on(picture: DepthPicture, rules: MarkerRules, seed: int) -> list[Marker] | None:
    """The points of a picture, the same for every kind of record; None if they find no place."""
    depth = np.asarray(picture.depth)
    return place_markers(depth, picture_rng(seed, picture.image, 1), rules)
