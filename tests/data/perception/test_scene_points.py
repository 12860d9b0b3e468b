"""Things as points: clear depths, names that fit one thing, labels that say nothing."""

import numpy as np

from vistok.data.perception.scene_points import SCENE_RULES, nearness, nearness_code, scene_points
from vistok.data.scenes.layout import make_layout
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
