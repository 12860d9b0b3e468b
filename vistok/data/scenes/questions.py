"""Questions of named kinds about a layout, each with its one right answer.

The first words of a question say what is asked, since a causal model must know what to fetch before it reads which
thing is meant. A thing is named only where the name fits no other thing, and relations are asked only where they are
clear: places at least a tenth of the side apart, depths by 15 %, radii by 20 %. Sizes are those of the circle around a
shape: a star that covers less than a smaller disc still looks larger.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from vistok.data.scenes.layout import COLORS, GLYPHS, HELD_OUT, MAX_THINGS, SHAPES, TEXTURES, Layout, Thing, make_layout
from vistok.data.scenes.splits import seeds_of, split_of

_COUNTS = tuple(str(number) for number in range(MAX_THINGS + 1))
ANSWERS: dict[str, tuple[str, ...]] = {
    "color": COLORS,
    "shape": SHAPES,
    "texture": TEXTURES,
    "glyph": GLYPHS,
    "exist": ("yes", "no"),
    "count": _COUNTS[1:],
    "count_color": _COUNTS[:5],
    "count_shape": _COUNTS[:5],
    "horizontal": ("left", "right"),
    "vertical": ("above", "below"),
    "depth": ("nearer", "farther"),
    "size": ("larger", "smaller"),
    "nearest": COLORS,
    "farthest": SHAPES,
}
KINDS = tuple(ANSWERS)

_HELD_OUT_NAMES = tuple(f"{color} {shape}" for color, shape in HELD_OUT)
_ABOUT_ONE = ("color", "shape", "texture", "glyph", "exist", "horizontal", "vertical", "depth", "size")
_APART, _DEPTH_RATIO, _SIZE_RATIO = 0.1, 1.15, 1.2


@dataclass(frozen=True)
class Question:
    """One question about the scene of `seed`: words separated by spaces, an answer of one word."""

    seed: int
    kind: str
    text: str
    answer: str


def questions_about(layout: Layout) -> list[Question]:
    """All questions that can be asked, by kind in the order of KINDS.

    None names a held-out pair that is not shown, or training would teach that there never is one.
    """
    found: list[Question] = []
    for kind in KINDS:
        found += [Question(layout.seed, kind, text, answer) for text, answer in _ASK[kind](layout.things)]
    return found


def balanced_questions(
    split: str, count: int, kinds: Sequence[str] = KINDS, *, first_seed: int = 0
) -> Iterator[Question]:
    """`count` questions of equally frequent kinds, the answers of a kind equally frequent too; one scene a question.

    first_seed: where in the split's seeds to begin; the same arguments give the same questions.
    Raises: at the first question, ValueError naming an unknown kind or split, a `count` below 0 or a `first_seed`
    outside the split; at a later one, if the split's seeds do not suffice.
    """
    unknown = [kind for kind in kinds if kind not in ANSWERS]
    if unknown or not kinds:
        raise ValueError(f"kinds: expected some of {', '.join(KINDS)}, got {', '.join(unknown) or 'none'}")
    there = seeds_of(split)
    if count < 0 or not 0 <= first_seed < len(there):
        raise ValueError(
            f"count, first_seed: expected count >= 0 and 0 <= first_seed < {len(there)}, got {count}, {first_seed}"
        )
    seeds = iter(there[first_seed:])
    for number in range(count):
        kind = kinds[number % len(kinds)]
        answer = ANSWERS[kind][number // len(kinds) % len(ANSWERS[kind])]
        question = next((question for seed in seeds for question in _one(seed, kind, answer)), None)
        if question is None:
            raise ValueError(f"split {split!r}: expected {count} questions after seed {first_seed}, found {number}")
        yield question


def _one(seed: int, kind: str, answer: str) -> list[Question]:
    """A random one of the questions of a scene with this kind and answer, or none.

    In a held-out scene one about a held-out thing, if the kind asks about single things.
    """
    layout = make_layout(seed)
    fitting = [text for text, given in _ASK[kind](layout.things) if given == answer]
    if split_of(seed) == "heldout" and kind in _ABOUT_ONE and answer != "no":
        fitting = [text for text in fitting if any(pair in f"{text} {_full(text, answer)}" for pair in _HELD_OUT_NAMES)]
    if not fitting:
        return []
    rng = np.random.default_rng((seed, 2))
    return [Question(seed, kind, fitting[int(rng.integers(len(fitting)))], answer)]


def _full(text: str, answer: str) -> str:
    """The colour and shape of a thing that the question names by one of them and the answer by the other."""
    named_by = next((word for word in text.split() if word in (*COLORS, *SHAPES)), "")
    return f"{answer} {named_by}" if answer in COLORS else f"{named_by} {answer}"


def _pair(thing: Thing) -> str:
    return f"{thing.color} {thing.shape}"


def named(things: Sequence[Thing]) -> list[Thing]:
    """Things whose colour and shape no other thing has both."""
    pairs = [_pair(thing) for thing in things]
    return [thing for thing, pair in zip(things, pairs, strict=True) if pairs.count(pair) == 1]


Asked = list[tuple[str, str]]


def _color(things: Sequence[Thing]) -> Asked:
    shapes = [thing.shape for thing in things]
    return [(f"what color is the {t.shape} ?", t.color) for t in things if shapes.count(t.shape) == 1]


def _shape(things: Sequence[Thing]) -> Asked:
    colors = [thing.color for thing in things]
    return [(f"what shape is the {t.color} thing ?", t.shape) for t in things if colors.count(t.color) == 1]


def _texture(things: Sequence[Thing]) -> Asked:
    return [(f"what texture is the {_pair(t)} ?", t.texture) for t in named(things)]


def _glyph(things: Sequence[Thing]) -> Asked:
    return [(f"what sign is on the {_pair(t)} ?", t.glyph) for t in named(things) if t.glyph is not None]


def _exist(things: Sequence[Thing]) -> Asked:
    """Half of what is absent has a colour and a shape that are there, on different things."""
    there = {(thing.color, thing.shape) for thing in things}
    colors, shapes = {thing.color for thing in things}, {thing.shape for thing in things}
    absent = [(c, s) for c in COLORS for s in SHAPES if (c, s) not in there and (c, s) not in HELD_OUT]
    mixed = [(c, s) for c, s in absent if c in colors and s in shapes]
    others = [(c, s) for c, s in absent if (c in colors) != (s in shapes)][: len(mixed) or None]
    asked = [(pair, "yes") for pair in sorted(there)] + [(pair, "no") for pair in mixed + others]
    return [(f"is there a {color} {shape} ?", answer) for (color, shape), answer in asked]


def _count(things: Sequence[Thing]) -> Asked:
    return [("how many things are there ?", str(len(things)))]


def _count_color(things: Sequence[Thing]) -> Asked:
    colors = [thing.color for thing in things]
    asked = [(f"how many {color} things are there ?", str(colors.count(color))) for color in COLORS]
    return [(text, answer) for text, answer in asked if answer in ANSWERS["count_color"]]


def _count_shape(things: Sequence[Thing]) -> Asked:
    shapes = [thing.shape for thing in things]
    asked = [(f"how many {shape} shapes are there ?", str(shapes.count(shape))) for shape in SHAPES]
    return [(text, answer) for text, answer in asked if answer in ANSWERS["count_shape"]]


def _horizontal(things: Sequence[Thing]) -> Asked:
    return [
        (f"left or right is the {_pair(a)} of the {_pair(b)} ?", "left" if a.x < b.x else "right")
        for a, b in _ordered_pairs(things)
        if abs(a.x - b.x) >= _APART
    ]


def _vertical(things: Sequence[Thing]) -> Asked:
    return [
        (f"above or below is the {_pair(a)} of the {_pair(b)} ?", "above" if a.y < b.y else "below")
        for a, b in _ordered_pairs(things)
        if abs(a.y - b.y) >= _APART
    ]


def _depth(things: Sequence[Thing]) -> Asked:
    return [
        (f"nearer or farther is the {_pair(a)} than the {_pair(b)} ?", "nearer" if a.depth < b.depth else "farther")
        for a, b in _ordered_pairs(things)
        if _ratio(a.depth, b.depth) >= _DEPTH_RATIO
    ]


def _size(things: Sequence[Thing]) -> Asked:
    return [
        (
            f"larger or smaller looks the {_pair(a)} than the {_pair(b)} ?",
            "larger" if a.radius > b.radius else "smaller",
        )
        for a, b in _ordered_pairs(things)
        if _ratio(a.radius, b.radius) >= _SIZE_RATIO
    ]


def _nearest(things: Sequence[Thing]) -> Asked:
    clear = len(things) > 1 and _ratio(things[0].depth, things[1].depth) >= _DEPTH_RATIO
    return [("what color is the nearest thing ?", things[0].color)] if clear else []


def _farthest(things: Sequence[Thing]) -> Asked:
    clear = len(things) > 1 and _ratio(things[-1].depth, things[-2].depth) >= _DEPTH_RATIO
    return [("what shape is the farthest thing ?", things[-1].shape)] if clear else []


def _ordered_pairs(things: Sequence[Thing]) -> Iterator[tuple[Thing, Thing]]:
    clear = named(things)
    return ((a, b) for a in clear for b in clear if a is not b)


def _ratio(first: float, second: float) -> float:
    return max(first, second) / min(first, second)


_ASK = {
    "color": _color,
    "shape": _shape,
    "texture": _texture,
    "glyph": _glyph,
    "exist": _exist,
    "count": _count,
    "count_color": _count_color,
    "count_shape": _count_shape,
    "horizontal": _horizontal,
    "vertical": _vertical,
    "depth": _depth,
    "size": _size,
    "nearest": _nearest,
    "farthest": _farthest,
}
