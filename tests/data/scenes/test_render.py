import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from skimage import data

from vistok.data.scenes import COLORS, SHAPES, SPLITS, render, seeds_of

DIGEST = """
import hashlib
from PIL import Image
from vistok.data.scenes import SPLITS, balanced_questions, questions_about, render, seeds_of
from vistok.data.scenes.captions import caption
from vistok.data.scenes.rows import parquet, pictures, row
digest = hashlib.sha256()
photograph = Image.effect_mandelbrot((300, 200), (-2, -1, 1, 1), 50)
for split in SPLITS:
    for side, photographs in ((64, ()), (96, (photograph,)), (96, ())):
        scenes = [render(seed, side, photographs) for seed in seeds_of(split)[:5]]
        for scene in scenes:
            for array in (scene.image, scene.depth, scene.instances):
                digest.update(array.tobytes())
        rows = [row(scene, pictures(scene), questions_about(scene.layout), "x.png") for scene in scenes]
        digest.update(parquet(rows))
        digest.update(repr([(scene.layout, caption(scene.layout)) for scene in scenes]).encode())
    digest.update(repr(list(balanced_questions(split, 28))).encode())
print(digest.hexdigest())
"""
HUES = {"red": 0, "yellow": 50, "green": 130, "cyan": 185, "blue": 231, "pink": 315}  # degrees


@pytest.mark.slow
def test_two_processes_give_the_same_bytes():
    """Fresh interpreters whose strings hash differently: no set or dict order may reach a pixel or a word."""
    said = [
        subprocess.run(
            [sys.executable, "-c", DIGEST],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]
    assert said[0] == said[1] and len(said[0].strip()) == 64


@pytest.mark.parametrize("side", [64, 96, 224, 336])
def test_every_size_shows_the_same_scene(side):
    for split in SPLITS:
        for seed in seeds_of(split)[:4]:
            scene, small = render(seed, side), render(seed, 64)
            assert scene.image.shape == (side, side, 3) and scene.image.dtype == np.uint8
            assert scene.depth.shape == scene.instances.shape == (side, side)
            assert scene.depth.dtype == np.float32 and scene.instances.dtype == np.uint8
            for mask, other in zip(scene.masks, small.masks, strict=True):
                centres = [(np.argwhere(one).mean(axis=0) + 0.5) / len(one) for one in (mask, other)]
                assert np.abs(centres[0] - centres[1]).max() < 1 / 64
                assert abs(np.sqrt(mask.mean() / other.mean()) - 1) < 0.1


@pytest.mark.parametrize("side", [0, 63, 337])
def test_a_size_out_of_range_is_an_error(side):
    with pytest.raises(ValueError, match=f"side: expected 64 to 336 pixels, got {side}"):
        render(0, side)


def test_another_seed_is_another_scene():
    assert len({render(seed, 64).image.tobytes() for seed in range(20)}) == 20


def test_masks_boxes_and_class_ids_tell_the_same_things():
    for seed in range(40):
        scene = render(seed, 96)
        things = scene.layout.things
        assert scene.masks.shape == (len(things), 96, 96) and not (scene.masks.sum(axis=0) > 1).any()
        for mask, (left, top, right, bottom), number, thing in zip(
            scene.masks, scene.boxes, scene.class_ids, things, strict=True
        ):
            inside = mask[top:bottom, left:right]
            assert inside.sum() == mask.sum() > 0
            assert all(edge.any() for edge in (inside[0], inside[-1], inside[:, 0], inside[:, -1]))
            assert (COLORS[number // len(SHAPES)], SHAPES[number % len(SHAPES)]) == (thing.color, thing.shape)


def test_depth_is_a_things_own_under_its_mask_and_farther_everywhere_else():
    for seed in range(40):
        scene = render(seed, 96)
        for mask, thing in zip(scene.masks, scene.layout.things, strict=True):
            assert (scene.depth[mask] == np.float32(thing.depth)).all()
        behind = scene.depth[scene.instances == 0]
        assert behind.min() >= 8 and behind.max() <= 12


def test_under_every_mask_the_pixels_have_the_colour_that_is_named():
    """The mean hue, weighted by chroma, lies nearest to that of the name: haze and textures change no colour's name."""
    for seed in (seed for split in SPLITS for seed in seeds_of(split)[:25]):
        scene = render(seed, 96)
        for mask, thing in zip(scene.masks, scene.layout.things, strict=True):
            pixels = scene.image[mask] / 255
            # Red, green, blue as directions a third of a turn apart: the sum's angle is the hue, its length the chroma.
            color = pixels @ np.exp(2j * np.pi * np.arange(3) / 3)
            hue = np.degrees(np.angle((color * np.abs(color)).sum()))
            apart = {name: abs((hue - degrees + 180) % 360 - 180) for name, degrees in HUES.items()}
            assert min(apart, key=apart.__getitem__) == thing.color, (seed, thing)


def test_a_photograph_fills_the_background_and_changes_nothing_else():
    photographs = [Image.fromarray(data.astronaut()), Image.fromarray(data.coffee())]
    behind = []
    for seed in range(10):
        drawn, taken = render(seed, 96), render(seed, 96, photographs)
        assert (drawn.depth == taken.depth).all() and (drawn.instances == taken.instances).all()
        assert drawn.layout == taken.layout
        whole = taken.masks.any(axis=0)
        inner = whole[1:-1, 1:-1] & whole[:-2, 1:-1] & whole[2:, 1:-1] & whole[1:-1, :-2] & whole[1:-1, 2:]
        same = (drawn.image == taken.image).all(axis=-1)
        assert same[1:-1, 1:-1][inner].mean() > 0.9, "only blended edges show the background"
        behind.append(same[~whole].mean())
        assert (taken.image == render(seed, 96, photographs).image).all()
    assert np.mean(behind) < 0.3


def test_a_grey_photograph_and_one_smaller_than_the_picture_serve_too():
    grey = Image.fromarray(data.astronaut()[..., 0]).resize((40, 30))
    scene = render(3, 96, [grey])
    behind = scene.image[(scene.instances == 0) & (scene.depth > 9)]
    assert (np.ptp(behind.astype(int), axis=1) == 0).mean() > 0.9, "all but the blended edges of clutter"
