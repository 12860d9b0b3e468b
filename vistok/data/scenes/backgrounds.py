"""Backgrounds [side, side, 3] float32 in 0..255: five procedural kinds, or a random square of a photograph."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Array = NDArray[Any]

BACKGROUNDS = ("gradient", "clouds", "checks", "stripes", "cloth")


def background(rng: np.random.Generator, side: int, photographs: Sequence[Image.Image] = ()) -> Array:
    """One of `photographs` if there are any, else one of BACKGROUNDS in muted colours."""
    if photographs:
        return _photograph(rng, side, photographs[int(rng.integers(len(photographs)))])
    first, second, kind = _draw(rng)
    rows, columns = np.mgrid[0:side, 0:side].astype(np.float32) / side
    angle = rng.uniform(0, 2 * np.pi)
    along = np.cos(angle) * columns + np.sin(angle) * rows
    across = np.cos(angle) * rows - np.sin(angle) * columns
    if kind == "gradient":
        mix = (along - along.min()) / np.ptp(along)
    elif kind == "clouds":
        mix = _smooth_noise(rng, side, int(rng.integers(3, 13)))
    elif kind == "checks":
        cells = rng.uniform(3, 9)
        mix = ((np.floor(along * cells) + np.floor(across * cells)) % 2).astype(np.float32)
    elif kind == "stripes":
        mix = np.clip(np.sin(along * rng.uniform(12, 60)) * 2 + 0.5, 0, 1)
    else:
        frequency = rng.uniform(30, 90)
        mix = 0.5 + 0.25 * (np.sin(along * frequency) + np.sin(across * frequency))
    grain = rng.standard_normal((side, side, 1), dtype=np.float32) * rng.uniform(0, 7)
    return np.asarray(first + (second - first) * mix[..., None].astype(np.float32) + grain, dtype=np.float32)


def background_kind(rng: np.random.Generator) -> str:
    """Which of BACKGROUNDS `background` paints with a generator in that state."""
    return _draw(rng)[2]


def _draw(rng: np.random.Generator) -> tuple[Array, Array, str]:
    return _muted(rng), _muted(rng), BACKGROUNDS[int(rng.integers(len(BACKGROUNDS)))]


def _muted(rng: np.random.Generator) -> Array:
    """A grey with a faint tint, so that no background has a thing's colour."""
    return np.asarray(rng.uniform(45, 210) + rng.uniform(-25, 25, 3), dtype=np.float32)


def _smooth_noise(rng: np.random.Generator, side: int, cells: int) -> Array:
    coarse = Image.fromarray(rng.random((cells, cells), dtype=np.float32))
    return np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC), dtype=np.float32)


def _photograph(rng: np.random.Generator, side: int, photograph: Image.Image) -> Array:
    """A random square, from the whole shorter side down to a third of it."""
    length = round(min(photograph.size) * rng.uniform(0.34, 1))
    left, top = (int(rng.integers(extent - length + 1)) for extent in photograph.size)
    box = (left, top, left + length, top + length)
    square = photograph.convert("RGB").resize((side, side), Image.Resampling.BILINEAR, box=box)
    return np.asarray(square, dtype=np.float32)
