"""Scenes of one large thing."""

import pytest

from vistok.data.scenes import make_layout, render, seeds_of
from vistok.data.scenes.portraits import portrait


@pytest.mark.parametrize("split", ["train", "test", "heldout"])
def test_a_portrait_is_the_nearest_thing_alone_large_and_whole(split):
    for seed in seeds_of(split)[:40]:
        thing, *others = portrait(seed).things
        nearest = make_layout(seed).things[0]
        assert not others and thing.glyph is None
        assert (thing.shape, thing.color, thing.texture, thing.size) == (
            nearest.shape, nearest.color, nearest.texture, nearest.size
        )  # fmt: skip
        assert (thing.radius > 0.3) == (thing.size == "large")
        assert thing.radius <= min(thing.x, thing.y, 1 - thing.x, 1 - thing.y) + 1e-9


def test_the_same_seed_gives_the_same_picture_in_which_the_thing_shows():
    first, second = render(portrait(5), 64), render(portrait(5), 64)
    assert (first.image == second.image).all() and 0.05 < first.masks.mean() < 0.6
