"""Counting as questions: say the boxes, the number, or the number after the boxes (AURORA, arXiv:2412.03548).

Texts are ours; every one can be replaced. Boxes are written by a codec's `to_text` or any other function.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from vistok.data.perception.records import Record, picture_rng, record

Box = Sequence[float]
BoxText = Callable[[Box], str]

_MOST, _EACH = 15, 1000


class BoxedPicture(NamedTuple):
    """boxes: of every category, (left, top, right, bottom) in 0..1; incomplete: categories of which some may lack.

    absent: categories of which it is known that there are none, as LVIS says for some.
    """

    image: str
    boxes: Mapping[str, Sequence[Box]]
    incomplete: frozenset[str] = frozenset()
    absent: tuple[str, ...] = ()


@dataclass(frozen=True)
class CountTemplates:
    """Questions and answers with {plural}, {boxes} and {count}; box: one line of {boxes}, with {number} and {box}."""

    boxes: tuple[str, ...] = (
        "Give the bounding boxes of all {plural}.",
        "Where are the {plural} in this picture? Answer with boxes.",
        "Mark each of the {plural} with a bounding box.",
        "List a box for every one of the {plural} you can see.",
        "Find all {plural} and write down their boxes.",
    )
    boxes_answer: str = "Here are the bounding boxes for the {plural}:\n{boxes}"
    none: str = "There are no {plural} in the image."
    direct: str = "How many {plural} are there in this picture?"
    direct_answer: str = "{count}"
    reasoning: str = (
        "How many {plural} are there in this picture? Write down their bounding boxes first, then count them."
    )
    reasoning_answer: str = "Here are the bounding boxes for the {plural}:\n{boxes}\nSo there are {count} {plural}."
    box: str = "Bounding box {number}: {box}"


@dataclass(frozen=True)
class CountCoT:
    """Records about the category that a picture shows most of. encode: one box as text; plural: of a name."""

    encode: BoxText
    templates: CountTemplates = field(default_factory=CountTemplates)
    plural: Callable[[str], str] = lambda name: plural_of(name)
    most: int = _MOST
    seed: int = 0

    def boxes(self, picture: BoxedPicture) -> Record | None:
        """The boxes alone, asked for in one of several ways; None if nothing can be asked about the picture."""
        way = int(picture_rng(self.seed, picture.image, 2).integers(len(self.templates.boxes)))
        return self._answered(picture, "boxes", self.templates.boxes[way], self.templates.boxes_answer)

    def reasoning(self, picture: BoxedPicture) -> Record | None:
        """Boxes, then how many."""
        return self._answered(picture, "reasoning", self.templates.reasoning, self.templates.reasoning_answer)

    def direct(self, picture: BoxedPicture) -> Record | None:
        """How many."""
        return self._answered(picture, "direct", self.templates.direct, self.templates.direct_answer, none=False)

    def category(self, picture: BoxedPicture) -> str | None:
        """The completely labelled category with the most boxes, at most `most`; else one that is absent, drawn."""
        counts = {
            name: len(boxes)
            for name, boxes in picture.boxes.items()
            if name not in picture.incomplete and 0 < len(boxes) <= self.most
        }
        if counts:
            return max(counts, key=lambda name: (counts[name], name))
        if not picture.absent:
            return None
        return picture.absent[int(picture_rng(self.seed, picture.image, 3).integers(len(picture.absent)))]

    def chosen(self, pictures: Iterable[BoxedPicture], each: int = _EACH) -> Iterator[BoxedPicture]:
        """Those of which something can be asked, at most `each` of every count."""
        held: Counter[int] = Counter()
        for picture in pictures:
            name = self.category(picture)
            count = len(picture.boxes.get(name, ())) if name is not None else -1
            if count >= 0 and held[count] < each:
                held[count] += 1
                yield picture

    def _answered(
        self, picture: BoxedPicture, kind: str, question: str, answer: str, *, none: bool = True
    ) -> Record | None:
        name = self.category(picture)
        if name is None:
            return None
        boxes = picture.boxes.get(name, ())
        for box in boxes:
            if len(box) != 4 or not (0 <= box[0] <= box[2] <= 1 and 0 <= box[1] <= box[3] <= 1):
                raise ValueError(
                    f"{picture.image}: expected boxes (left, top, right, bottom) in 0..1, got {list(box)}; divide by "
                    "the picture's width and height"
                )
        lines = [self.templates.box.format(number=i, box=self.encode(box)) for i, box in enumerate(boxes, 1)]
        fields = {"plural": self.plural(name), "boxes": "\n".join(lines), "count": str(len(boxes))}
        said = self.templates.none if none and not boxes else answer
        return record(
            picture.image,
            question.format(**fields),
            said.format(**fields),
            kind=f"count_{kind}",
            seed=self.seed,
            category=name,
            count=len(boxes),
        )


def plural_of(name: str) -> str:
    """An English plural by rule: "box" -> "boxes", "berry" -> "berries", "dog" -> "dogs"."""
    if name.endswith(("s", "x", "z", "ch", "sh")):
        return f"{name}es"
    if name.endswith("y") and name[-2:-1] not in tuple("aeiou"):
        return f"{name[:-1]}ies"
    return f"{name}s"
