"""Every answer once more, from what shows: the instance map, the depth map and the names of what the map numbers."""

import re
from collections import Counter
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vistok.data.scenes import (
    COLORS,
    GLYPHS,
    HELD_OUT,
    KINDS,
    SHAPES,
    SPLITS,
    TEXTURES,
    Scene,
    make_layout,
    render,
    seeds_of,
)
from vistok.data.scenes.questions import ANSWERS, balanced_questions, questions_about

COUNTED = {
    "circle": np.pi * 0.95**2,
    "square": 1.6**2,
    "triangle": 3 * np.sqrt(3) * 0.55**2,
    "star": 5 * 1.1 * 0.5 * np.sin(np.pi / 5),
    "cross": 2 * 2 * 0.64 - 0.64**2,
    "ring": np.pi * (1 - 0.5**2),
}  # areas of the shapes of radius 1


@dataclass(frozen=True)
class Seen:
    """What shows of one thing. x, y: its centroid, radius: from its area, all in image sides; depth in metres."""

    shape: str
    color: str
    texture: str
    glyph: str | None
    x: float
    y: float
    radius: float
    depth: float

    @property
    def pair(self) -> str:
        return f"{self.color} {self.shape}"


def look(scene: Scene) -> list[Seen]:
    """Only what a reader of the files has: the maps, and shape, colour, texture and sign of each number in them."""
    side = len(scene.instances)
    seen = []
    for number in np.unique(scene.instances[scene.instances > 0]):
        thing = scene.layout.things[number - 1]
        rows, columns = np.nonzero(scene.instances == number)
        depths = scene.depth[rows, columns]
        assert np.ptp(depths) == 0, "all of a thing faces the camera"
        area = COUNTED[thing.shape]
        x, y = (columns.mean() + 0.5) / side, (rows.mean() + 0.5) / side
        radius = np.sqrt(len(rows) / area) / side
        seen.append(Seen(thing.shape, thing.color, thing.texture, thing.glyph, x, y, radius, float(depths[0])))
    return seen


def the(seen: list[Seen], name: str) -> Seen:
    """The one thing that a name fits: "red star", "star" or "red"."""
    fitting = [one for one in seen if name in (one.pair, one.shape, one.color)]
    assert len(fitting) == 1, f"{name} names {len(fitting)} things"
    return fitting[0]


def order(low: float, high: float, words: tuple[str, str], least: float) -> str:
    """The first word if `low` is below `high`; they must be `least` apart."""
    assert abs(low - high) >= least, f"{low} and {high} are too close to say {words[0]} or {words[1]}"
    return words[0] if low < high else words[1]


def edge(seen: list[Seen], end: int) -> Seen:
    """The nearest (0) or farthest (-1) thing, clear of the next by a seventh at least."""
    ranked = sorted(seen, key=lambda one: one.depth)
    first, second = (ranked[0], ranked[1]) if end == 0 else (ranked[-2], ranked[-1])
    assert second.depth / first.depth > 1.149
    return ranked[end]


# Centres that are asked about are 0.1 apart. A centroid strays from its centre by a share of a pixel, and by what is
# covered, three tenths of a thing at most: half of the distance is left. A radius that is taken from an area of which
# seven tenths show is sqrt(0.7) = 0.84 of the true one or more: radii in a ratio of 1.2 keep one above 1.005.
APART, DEPTH_APART, SIZE_APART = 0.05, np.log(1.149), np.log(1.005)
RULES = {
    "color": (r"what color is the (\w+) \?", lambda seen, name: the(seen, name).color),
    "shape": (r"what shape is the (\w+) thing \?", lambda seen, name: the(seen, name).shape),
    "texture": (r"what texture is the (\w+ \w+) \?", lambda seen, name: the(seen, name).texture),
    "glyph": (r"what sign is on the (\w+ \w+) \?", lambda seen, name: the(seen, name).glyph),
    "exist": (
        r"is there a (\w+ \w+) \?",
        lambda seen, name: "yes" if any(one.pair == name for one in seen) else "no",
    ),
    "count": (r"how many things are there \?", lambda seen: str(len(seen))),
    "count_color": (
        r"how many (\w+) things are there \?",
        lambda seen, name: str(sum(one.color == name for one in seen)),
    ),
    "count_shape": (
        r"how many (\w+) shapes are there \?",
        lambda seen, name: str(sum(one.shape == name for one in seen)),
    ),
    "horizontal": (
        r"left or right is the (\w+ \w+) of the (\w+ \w+) \?",
        lambda seen, a, b: order(the(seen, a).x, the(seen, b).x, ("left", "right"), APART),
    ),
    "vertical": (
        r"above or below is the (\w+ \w+) of the (\w+ \w+) \?",
        lambda seen, a, b: order(the(seen, a).y, the(seen, b).y, ("above", "below"), APART),
    ),
    "depth": (
        r"nearer or farther is the (\w+ \w+) than the (\w+ \w+) \?",
        lambda seen, a, b: order(
            np.log(the(seen, a).depth), np.log(the(seen, b).depth), ("nearer", "farther"), DEPTH_APART
        ),
    ),
    "size": (
        r"larger or smaller looks the (\w+ \w+) than the (\w+ \w+) \?",
        lambda seen, a, b: order(
            np.log(the(seen, a).radius), np.log(the(seen, b).radius), ("smaller", "larger"), SIZE_APART
        ),
    ),
    "nearest": (r"what color is the nearest thing \?", lambda seen: edge(seen, 0).color),
    "farthest": (r"what shape is the farthest thing \?", lambda seen: edge(seen, -1).shape),
}


def check(seed: int, side: int) -> Counter[str]:
    """Answer every question about a scene anew; how many there were of each kind."""
    scene = render(seed, side)
    seen = look(scene)
    questions = questions_about(scene.layout)
    for question in questions:
        pattern, rule = RULES[question.kind]
        match = re.fullmatch(pattern, question.text)
        assert match, question
        assert rule(seen, *match.groups()) == question.answer, question
    assert len({question.text for question in questions}) == len(questions)
    return Counter(question.kind for question in questions)


@settings(max_examples=25, deadline=None)
@given(split=st.sampled_from(SPLITS), number=st.integers(0, 2**32 - 1), side=st.sampled_from([64, 96, 224]))
def test_every_answer_follows_from_the_maps(split, number, side):
    check(seeds_of(split)[number], side)


def test_every_answer_of_400_scenes_follows_from_the_maps():
    asked = sum((check(seed, 96) for split in SPLITS for seed in seeds_of(split)[:100]), Counter())
    assert set(asked) == set(KINDS) and min(asked.values()) > 50


def test_questions_speak_of_what_is_shown_only_once():
    """A name is used only where it is a thing's own, so all that share it are asked about by number alone."""
    for seed in range(100):
        scene = render(seed, 64)
        pairs = Counter(f"{thing.color} {thing.shape}" for thing in scene.layout.things)
        twice = {pair for pair, times in pairs.items() if times > 1}
        named = [q.text for q in questions_about(scene.layout) if q.kind != "exist"]
        assert not any(pair in text for pair in twice for text in named)


def test_a_pair_that_is_held_out_is_named_only_where_it_is_shown():
    held_out = {f"{color} {shape}" for color, shape in HELD_OUT}
    for seed in (*seeds_of("train")[:100], *seeds_of("heldout")[:100]):
        layout = make_layout(seed)
        shown = {f"{thing.color} {thing.shape}" for thing in layout.things}
        for question in questions_about(layout):
            assert not any(pair in question.text for pair in held_out - shown), question


def test_held_out_scenes_are_asked_about_their_held_out_thing():
    held_out = {f"{color} {shape}" for color, shape in HELD_OUT}
    for question in balanced_questions("heldout", 90, ("color", "shape", "texture", "glyph", "exist")):
        words = question.text.split()
        asked = {"color": f"{question.answer} {words[-2]}", "shape": f"{words[4]} {question.answer}"}
        pair = asked.get(question.kind, " ".join(words[-3:-1]))
        assert question.answer == "no" or pair in held_out, question


def test_relations_in_held_out_scenes_name_a_held_out_thing():
    held_out = {f"{color} {shape}" for color, shape in HELD_OUT}
    for question in balanced_questions("heldout", 120, ("horizontal", "vertical", "depth", "size")):
        assert any(pair in question.text for pair in held_out), question


def test_a_ring_carries_no_sign_or_it_would_look_like_a_circle_with_one():
    things = [thing for seed in range(300) for thing in make_layout(seed).things]
    assert all(thing.glyph is None for thing in things if thing.shape == "ring")
    assert sum(thing.glyph is not None for thing in things) > 100


def test_kinds_and_answers_are_equally_frequent():
    questions = list(balanced_questions("test", 20 * len(KINDS)))
    assert [question.kind for question in questions] == list(KINDS) * 20
    for kind in KINDS:
        times = Counter(question.answer for question in questions if question.kind == kind)
        assert set(times) == set(ANSWERS[kind]) and max(times.values()) - min(times.values()) <= 1
    seeds = [question.seed for question in questions]
    assert all(first < second for first, second in pairwise(seeds)), "one scene a question"


def test_the_same_arguments_give_the_same_questions_and_another_start_gives_others():
    once, again, later = (list(balanced_questions("validation", 28, first_seed=first)) for first in (0, 0, 5000))
    assert once == again
    assert not {question.seed for question in once} & {question.seed for question in later}
    assert min(question.seed for question in later) >= seeds_of("validation")[5000]


def test_answers_are_what_the_kinds_list():
    assert ANSWERS["color"] == COLORS and ANSWERS["shape"] == SHAPES
    assert ANSWERS["texture"] == TEXTURES and ANSWERS["glyph"] == GLYPHS
    assert all(
        question.answer in ANSWERS[question.kind]
        for seed in range(50)
        for question in questions_about(render(seed, 64).layout)
    )


@pytest.mark.parametrize(
    ("arguments", "options", "said"),
    [
        (("test", 3, ["size", "weight"]), {}, "kinds: expected some of color, .*, got weight"),
        (("test", 3, []), {}, "kinds: .* got none"),
        (("dev", 3), {}, "split: expected one of train, validation, test, heldout, got 'dev'"),
        (("test", -1), {}, "expected count >= 0 .* got -1, 0"),
        (("test", 3), {"first_seed": 2**32}, "first_seed < 4294967296, got 3, 4294967296"),
        (("test", 99), {"first_seed": 2**32 - 3}, "'test': expected 99 questions after seed 4294967293, found"),
    ],
)
def test_what_cannot_be_asked_is_an_error_that_says_why(arguments, options, said):
    with pytest.raises(ValueError, match=said):
        list(balanced_questions(*arguments, **options))
