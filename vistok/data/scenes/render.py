"""A layout to pixels, metric depth and instance masks; numpy and Pillow only, the same bytes for the same seed."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vistok.data.scenes.backgrounds import background, background_kind
from vistok.data.scenes.layout import COLORS, DEPTHS, SHAPES, Clutter, Layout, Thing, make_layout
from vistok.data.scenes.outlines import OUTLINES, glyph_mask, pattern

Array = NDArray[Any]

MIN_SIDE, MAX_SIDE = 64, 336
_RGB = {
    "red": (215, 38, 38),
    "yellow": (240, 205, 30),
    "green": (40, 165, 60),
    "cyan": (30, 190, 205),
    "blue": (45, 70, 205),
    "pink": (230, 70, 190),
}
_HAZE = np.array([200, 208, 216], dtype=np.float32)
_HAZE_SHARE = 0.5  # of the farthest thing's colour
_WALL = (12.0, 9.0)  # metres at the top and at the bottom row: a plane behind all things
_BACKGROUND_STREAM = 1  # so that pixels of the background never shift the draws of the layout


@dataclass(frozen=True)
class Scene:
    """A rendered layout.

    image [S, S, 3] uint8; depth [S, S] float32 metres; instances [S, S] uint8: 0 background, i + 1 where
    `layout.things[i]` shows.
    """

    layout: Layout
    image: Array
    depth: Array
    instances: Array

    @property
    def masks(self) -> Array:
        """What shows of each thing, [N, S, S] bool, nearest thing first."""
        numbers = np.arange(1, len(self.layout.things) + 1, dtype=np.uint8)
        return np.asarray(self.instances == numbers[:, None, None])

    @property
    def boxes(self) -> Array:
        """Tight boxes of the masks, [N, 4] int64 (left, top, right, bottom), right and bottom exclusive."""
        return np.array([_box(mask) for mask in self.masks], dtype=np.int64).reshape(-1, 4)

    @property
    def class_ids(self) -> Array:
        """Colour and shape as one number, len(SHAPES) * colour + shape, [N] int64."""
        ids = [len(SHAPES) * COLORS.index(t.color) + SHAPES.index(t.shape) for t in self.layout.things]
        return np.array(ids, dtype=np.int64)


def render(layout: Layout | int, side: int = 96, photographs: Sequence[Image.Image] = ()) -> Scene:
    """Render a layout, or that of a seed, at `side` x `side` pixels, before one of `photographs` if there are any.

    Raises: ValueError if side is not in 64..336.
    """
    if not MIN_SIDE <= side <= MAX_SIDE:
        raise ValueError(f"side: expected {MIN_SIDE} to {MAX_SIDE} pixels, got {side}")
    layout = make_layout(layout) if isinstance(layout, int) else layout
    rng = _background_draws(layout)
    canvas = background(rng, side, photographs)
    depth = np.repeat(np.linspace(*_WALL, side, dtype=np.float32)[:, None], side, axis=1)
    instances = np.zeros((side, side), dtype=np.uint8)
    for piece in layout.clutter:
        _paint_clutter(piece, canvas, depth)
    for index in range(len(layout.things) - 1, -1, -1):
        _paint_thing(layout.things[index], index, canvas, depth, instances)
    image = np.clip(canvas + 0.5, 0, 255).astype(np.uint8)
    return Scene(layout, image, depth, instances)


def background_of(layout: Layout) -> str:
    """Which of `backgrounds.BACKGROUNDS` a layout is rendered before, where there are no photographs."""
    return background_kind(_background_draws(layout))


def _background_draws(layout: Layout) -> np.random.Generator:
    return np.random.default_rng((layout.seed, _BACKGROUND_STREAM))


def _paint_clutter(piece: Clutter, canvas: Array, depth: Array) -> None:
    window, x, y, pixel = _local(piece.x, piece.y, piece.radius, piece.angle, len(canvas))
    if window is None:
        return
    cover = np.clip(0.5 - OUTLINES[piece.kind](x, y) / pixel, 0, 1)
    shade = 1 - 0.4 * pattern(piece.texture, x, y)
    color = np.array(piece.color, dtype=np.float32) * shade[..., None]
    canvas[window] += cover[..., None] * (color - canvas[window])
    depth[window] = np.where(cover >= 0.5, np.float32(piece.depth), depth[window])


def _paint_thing(thing: Thing, index: int, canvas: Array, depth: Array, instances: Array) -> None:
    side = len(canvas)
    window, x, y, pixel = _local(thing.x, thing.y, thing.radius, thing.rotation, side)
    assert window is not None, "things lie inside the image"
    distance = OUTLINES[thing.shape](x, y) / pixel
    color = np.array(_RGB[thing.color], dtype=np.float32) * (1 - 0.55 * pattern(thing.texture, x, y))[..., None]
    color *= np.where(distance > -1.2, np.float32(0.55), np.float32(1))[..., None]
    if thing.glyph is not None:
        # A dark disc below the glyph, which belongs to the thing where it reaches beyond a star's notch.
        disc = (np.hypot(x, y) - 0.52) / pixel
        color += np.clip(0.5 - disc, 0, 1)[..., None] * (np.float32(25) - color)
        color += _glyph(thing, window, side)[..., None] * (np.float32(250) - color)
        distance = np.minimum(distance, disc)
    haze = _HAZE_SHARE * (thing.depth - DEPTHS[0]) / (DEPTHS[1] - DEPTHS[0])
    color += np.float32(haze) * (_HAZE - color)
    cover = np.clip(0.5 - distance, 0, 1)
    canvas[window] += cover[..., None] * (color - canvas[window])
    inside = cover >= 0.5
    depth[window] = np.where(inside, np.float32(thing.depth), depth[window])
    instances[window] = np.where(inside, np.uint8(index + 1), instances[window])


def _local(cx: float, cy: float, radius: float, angle: float, side: int) -> tuple[Any, Array, Array, float]:
    """Window of the image around a piece and its own upright coordinates there; a pixel's size in them."""
    reach = radius * 1.15 + 1 / side
    left, top = (max(0, int((centre - reach) * side)) for centre in (cx, cy))
    right, bottom = (min(side, int((centre + reach) * side) + 2) for centre in (cx, cy))
    if left >= right or top >= bottom:
        return None, np.empty(0), np.empty(0), 1.0
    dx = (np.arange(left, right, dtype=np.float32) + 0.5) / side - np.float32(cx)
    dy = ((np.arange(top, bottom, dtype=np.float32) + 0.5) / side - np.float32(cy))[:, None]
    cos, sin = np.float32(np.cos(angle) / radius), np.float32(np.sin(angle) / radius)
    window = (slice(top, bottom), slice(left, right))
    return window, cos * dx + sin * dy, cos * dy - sin * dx, 1 / (radius * side)


def _glyph(thing: Thing, window: tuple[slice, slice], side: int) -> Array:
    """The glyph's ink in the window, upright whatever the thing's rotation."""
    assert thing.glyph is not None
    mask = glyph_mask(thing.glyph, max(5, round(0.8 * thing.radius * side)))
    height, width = mask.shape
    top = round(thing.y * side - height / 2) - window[0].start
    left = round(thing.x * side - width / 2) - window[1].start
    ink = np.zeros((window[0].stop - window[0].start, window[1].stop - window[1].start), dtype=np.float32)
    ink[top : top + height, left : left + width] = mask
    return ink


def _box(mask: Array) -> tuple[int, int, int, int]:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return 0, 0, 0, 0
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
