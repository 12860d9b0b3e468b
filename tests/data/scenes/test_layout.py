import numpy as np
import pytest
from PIL import Image

from vistok.data.scenes import COLORS, GLYPHS, HELD_OUT, SHAPES, SPLITS, TEXTURES, Layout, make_layout, render, seeds_of
from vistok.data.scenes.captions import caption

SEEN = [seed for split in SPLITS for seed in seeds_of(split)[:125]]
LEAST_VISIBLE = 0.7
PLAIN = [Image.new("RGB", (4, 4))]  # drawing a background would take most of the time


def test_pairs_that_are_held_out_show_in_every_heldout_scene_and_in_no_other():
    shown = set()
    for split in SPLITS:
        for seed in seeds_of(split)[:400]:
            pairs = {(thing.color, thing.shape) for thing in make_layout(seed).things} & set(HELD_OUT)
            assert bool(pairs) == (split == "heldout"), seed
            shown |= pairs
    assert shown == set(HELD_OUT)


def test_every_colour_and_every_shape_is_held_out_once_and_seen_in_other_pairs():
    colors, shapes = zip(*HELD_OUT, strict=True)
    assert (sorted(colors), sorted(shapes)) == (sorted(COLORS), sorted(SHAPES))
    pairs = {(thing.color, thing.shape) for seed in range(400) for thing in make_layout(seed).things}
    assert len(pairs) == len(COLORS) * len(SHAPES) - len(HELD_OUT)


def test_at_least_seven_tenths_of_every_thing_show():
    shares = []
    for seed in SEEN:
        layout = make_layout(seed)
        shown = render(layout, 96, PLAIN).masks.sum(axis=(1, 2))
        alone = [render(Layout(seed, (thing,), ()), 96, PLAIN).masks.sum() for thing in layout.things]
        shares += (shown / np.array(alone)).tolist()
    assert len(shares) > 4 * len(SEEN)
    assert min(shares) >= LEAST_VISIBLE
    assert min(shares) < 0.9 < 1 == max(shares), "some things cover others"


def test_things_are_one_to_eight_nearest_first_inside_the_image():
    counts = set()
    for seed in SEEN:
        things = make_layout(seed).things
        counts.add(len(things))
        depths = [thing.depth for thing in things]
        assert depths == sorted(depths) and depths[0] >= 3.5 and depths[-1] <= 7.5
        for thing in things:
            assert thing.radius <= min(thing.x, thing.y) and max(thing.x, thing.y) <= 1 - thing.radius
            assert thing.texture in TEXTURES and (thing.glyph is None or thing.glyph in GLYPHS)
    assert counts == set(range(1, 9))


def test_apparent_size_is_physical_size_by_depth():
    for seed in SEEN:
        for thing in make_layout(seed).things:
            metres = thing.radius * thing.depth / {"small": 0.5, "large": 0.75}[thing.size]
            assert 0.919 < metres < 1.081


def test_clutter_lies_behind_all_things():
    for seed in SEEN[::5]:
        clutter = make_layout(seed).clutter
        assert 4 <= len(clutter) <= 14 and min(piece.depth for piece in clutter) > 7.5


def test_a_caption_names_every_thing_with_all_it_has():
    for seed in SEEN[::10]:
        things = make_layout(seed).things
        parts = caption(make_layout(seed)).removesuffix(" .").split(" , then ")
        assert len(parts) == len(things)
        for part, thing in zip(parts, things, strict=True):
            words = ["a", thing.size, thing.texture, thing.color, thing.shape]
            assert part.split() == words + (["with", "sign", thing.glyph] if thing.glyph else [])


@pytest.mark.parametrize("seed", [-1, 4 * 2**32])
def test_a_seed_outside_the_splits_is_an_error(seed):
    with pytest.raises(ValueError, match=f"seed: expected 0 <= seed < 17179869184, got {seed}"):
        make_layout(seed)
