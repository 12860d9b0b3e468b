"""Signed distances of the shapes: negative inside, in the unit of the coordinates; textures; glyph masks.

Coordinates are those of a thing of radius 1, turned upright: x to the right, y down, both [h, w] float32.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

Array = NDArray[Any]


def circle(x: Array, y: Array) -> Array:
    """A disc of radius 0.95."""
    return np.asarray(np.hypot(x, y) - 0.95)


def square(x: Array, y: Array) -> Array:
    """Sides of 1.6."""
    return np.asarray(np.maximum(np.abs(x), np.abs(y)) - 0.8)


def triangle(x: Array, y: Array) -> Array:
    """Equilateral, corners at 1.1 from the centre."""
    return np.asarray(np.maximum(np.abs(x) * 0.8660254 - y * 0.5, y) - 0.55)


def star(x: Array, y: Array) -> Array:
    """Five points at 1.1, notches at 0.5."""
    angle = np.arctan2(x, -y)
    sector = np.float32(2 * np.pi / 5)
    folded = np.abs(angle - sector * np.round(angle / sector))
    length = np.hypot(x, y)
    along, across = length * np.cos(folded), length * np.sin(folded)
    # The edge from the point (1.1, 0) to the notch at half a sector, as a line's normal form.
    notch_along, notch_across = 0.5 * np.cos(sector / 2), 0.5 * np.sin(sector / 2)
    normal = np.array([notch_across, 1.1 - notch_along], dtype=np.float32)
    normal /= np.hypot(*normal)
    return np.asarray(normal[0] * (along - 1.1) + normal[1] * across)


def cross(x: Array, y: Array) -> Array:
    """Two bars, 2 long and 0.64 wide."""
    x, y = np.abs(x), np.abs(y)
    return np.asarray(np.minimum(np.maximum(x - 1, y - 0.32), np.maximum(x - 0.32, y - 1)))


def ring(x: Array, y: Array) -> Array:
    """From radius 0.5 to 1."""
    return np.asarray(np.abs(np.hypot(x, y) - 0.75) - 0.25)


def blob(x: Array, y: Array) -> Array:
    """A wobbly outline that no thing has; the wobble turns with the piece's angle."""
    angle = np.arctan2(y, x)
    return np.asarray(np.hypot(x, y) - 0.75 - 0.15 * np.sin(3 * angle) - 0.1 * np.cos(7 * angle))


def shard(x: Array, y: Array) -> Array:
    """A narrow splinter."""
    return np.asarray(np.abs(x) * 0.6 + np.abs(y) * 1.9 - 0.6 + 0.2 * x)


def line(x: Array, y: Array) -> Array:
    """A thread, 2 long and 0.04 wide."""
    return np.asarray(np.maximum(np.abs(x) - 1, np.abs(y) - 0.04))


OUTLINES: dict[str, Callable[[Array, Array], Array]] = {
    **{"circle": circle, "square": square, "triangle": triangle, "star": star, "cross": cross, "ring": ring},
    **{"blob": blob, "shard": shard, "line": line, "speck": circle},
}


def pattern(texture: str, x: Array, y: Array) -> Array:
    """How much of the dark colour of a texture shows, [h, w] in 0..1."""
    if texture == "striped":
        return np.asarray(np.clip(np.sin(x * 9.4) * 2.5 + 0.5, 0, 1))
    if texture == "dotted":
        wave = np.sin(x * 7.3 + 0.8) * np.sin(y * 7.3 + 0.8)
        return np.asarray(np.clip(wave * 4 - 1, 0, 1))
    return np.zeros_like(x)


@lru_cache(maxsize=512)
def glyph_mask(glyph: str, height: int) -> Array:
    """A character of Pillow's own font, [height, w] float32 in 0..1: its ink alone, scaled to `height` pixels."""
    font = ImageFont.load_default(size=64)
    canvas = Image.new("L", (96, 96))
    ImageDraw.Draw(canvas).text((16, 8), glyph, fill=255, font=font)
    ink = canvas.crop(canvas.getbbox())
    width = max(1, round(ink.width * height / ink.height))
    return np.asarray(ink.resize((width, height), Image.Resampling.BOX), dtype=np.float32) / 255
