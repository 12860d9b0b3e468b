"""Points keep the rules, and equal seeds give equal points."""

import numpy as np
import pytest
from PIL import Image

from vistok.data.perception.markers import Marker, MarkerRules, draw_markers, farthest, nearest, place_markers


def slope(side=336):
    return np.tile(np.linspace(1, 255, side), (side, 1))


def test_points_are_apart_differ_in_depth_and_have_one_label_each():
    seen = set()
    for seed in range(40):
        found = place_markers(slope(), np.random.default_rng(seed))
        assert found is not None and 2 <= len(found) <= 5
        assert sorted(marker.label for marker in found) == list("ABCDE"[: len(found)])
        for place, one in enumerate(found):
            assert 0 <= one.x <= 300 and 0 <= one.y <= 300 and one.depth == slope()[one.y, one.x] != 0
            for other in found[:place]:
                assert np.hypot(one.x - other.x, one.y - other.y) >= 20 and abs(one.depth - other.depth) >= 20
        seen.add((len(found), nearest(found).label))
    assert {count for count, _ in seen} == {2, 3, 4, 5} and len({label for _, label in seen}) > 3


def test_unknown_depth_and_places_that_are_ruled_out_are_never_marked():
    depth, where = slope(), np.zeros((336, 336), dtype=bool)
    depth[:150], where[:, 100:] = 0, True
    for seed in range(10):
        found = place_markers(depth, np.random.default_rng(seed), MarkerRules(counts=(2,)), where)
        assert found is not None and all(marker.y >= 150 and marker.x >= 100 for marker in found)


def test_a_map_without_places_gives_none_and_one_too_small_says_so():
    assert place_markers(np.full((336, 336), 9.0), np.random.default_rng(0)) is None
    with pytest.raises(ValueError, match=r"more than 300 pixels a side, got \[96, 96\]; resize it, or give"):
        place_markers(slope(96), np.random.default_rng(0))
    assert place_markers(slope(96), np.random.default_rng(0), MarkerRules(counts=(2,), high=90)) is not None
    with pytest.raises(ValueError, match="counts from 2 to the number of labels, 5, got"):
        MarkerRules(counts=(1, 6))


def test_equal_generators_give_equal_points():
    first, second = (place_markers(slope(), np.random.default_rng(5)) for _ in range(2))
    assert first == second != place_markers(slope(), np.random.default_rng(6))


def test_drawing_rings_the_point_and_leaves_the_picture_given_alone():
    image = Image.new("RGB", (100, 100), (9, 9, 9))
    drawn = draw_markers(image, [Marker("A", 50, 60, 1.0), Marker("B", 80, 5, 2.0)])
    assert drawn.getpixel((54, 60)) == drawn.getpixel((46, 60)) == (255, 0, 0) and drawn.getpixel((50, 60)) == (9, 9, 9)
    letter = np.asarray(drawn)[35:50, 50:60]
    assert (letter > 150).all(-1).any() and (letter == 0).all(-1).any()
    assert (np.asarray(image) == 9).all()


def test_nearest_is_the_largest_value():
    markers = [Marker("A", 0, 0, 3.0), Marker("B", 0, 0, 9.0), Marker("C", 0, 0, 1.0)]
    assert nearest(markers).label == "B" and farthest(markers).label == "C"
