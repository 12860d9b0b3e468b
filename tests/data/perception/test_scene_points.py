"""Things as points: clear depths, names that fit one thing, labels that say nothing."""

import numpy as np
import pytest

from vistok.data.perception.scene_points import SCENE_RULES, made_up_points, nearness, nearness_code, scene_points
from vistok.data.scenes.layout import HELD_OUT, make_layout
from vistok.data.scenes.questions import named


def drawn():
    for seed in range(60):
        layout = make_layout(seed)
        points = scene_points(layout, np.random.default_rng(seed))
        if points is not None:
            yield layout, points


def test_points_are_named_things_whose_depths_differ():
    counts, first = set(), set()
    for layout, points in drawn():
        things = {f"{thing.color} {thing.shape}": thing for thing in named(layout.things)}
        assert len({point.label for point in points}) == len({point.name for point in points}) == len(points)
        for point in points:
            thing = things[point.name]
            assert point.depth == nearness(thing)
            assert (point.x, point.y) == (int(thing.x * 96), int(thing.y * 96))
        assert np.diff(sorted(point.depth for point in points)).min() >= SCENE_RULES.contrast
        counts.add(len(points))
        first.add(points[0].label)
    assert counts == {2, 3} and first == {"A", "C", "E"}


def test_scenes_with_fewer_than_two_names_have_no_points():
    alone = next(layout for layout in map(make_layout, range(200)) if len(named(layout.things)) < 2)
    assert scene_points(alone, np.random.default_rng(0)) is None


def test_codes_are_equal_steps_from_far_to_near():
    assert [nearness_code(value, 4) for value in (0, 0.24, 0.25, 0.76, 1, -0.1, 1.2)] == [0, 0, 1, 3, 3, 0, 3]


def test_made_up_points_have_names_of_their_own_and_depths_that_keep_the_contrast():
    rng = np.random.default_rng(0)
    drawn_points = [made_up_points(rng, 3, 0.2) for _ in range(200)]
    nearest = np.zeros(3)
    for points in drawn_points:
        depths = [point.depth for point in points]
        assert len({point.name for point in points}) == 3 == len({point.label for point in points})
        assert np.diff(sorted(depths)).min() >= 0.2 - 1e-9 and min(depths) >= 0 and max(depths) <= 1
        nearest[int(np.argmax(depths))] += 1
    assert nearest.min() > 40, "the place in the list says nothing"
    held_out = {f"{color} {shape}" for color, shape in HELD_OUT}
    assert not held_out & {point.name for points in drawn_points for point in points}


def test_points_without_room_for_their_contrast_are_refused():
    rng = np.random.default_rng(0)
    for count, contrast in ((0, 0.1), (4, 0.1), (3, 0.5)):
        with pytest.raises(ValueError, match=f"expected 1 to 3 points with room .* got {count} points"):
            made_up_points(rng, count, contrast)
