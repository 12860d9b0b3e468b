"""What stands where in a scene, in metres and in parts of the image side: drawn from the seed before any pixel is.

The camera is a pinhole whose focal length is one image side, so a thing of physical radius R at depth z appears with
radius R / z, in image sides. All things face the camera; nearer ones cover farther ones.
"""

from dataclasses import dataclass

import numpy as np

from vistok.data.scenes.splits import split_of

SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
COLORS = ("red", "yellow", "green", "cyan", "blue", "pink")
TEXTURES = ("plain", "striped", "dotted")
SIZES = ("small", "large")
GLYPHS = tuple("1234567890ACEHKLTUXZ")
# One for every colour and every shape, so that each is known from other pairs.
HELD_OUT = tuple(zip(COLORS, ("ring", "cross", "star", "triangle", "square", "circle"), strict=True))

MAX_THINGS = 8
DEPTHS = (3.5, 7.5)  # metres
RADII = (0.06, 0.22)  # image sides: about what things appear with
_PHYSICAL_RADIUS = {"small": 0.5, "large": 0.75}  # metres, times 0.92 to 1.08
_GLYPH_RADIUS = 0.085  # image sides; on smaller things a glyph could not be read
_CLUTTER_RADII = {"blob": (0.05, 0.13), "shard": (0.03, 0.09), "line": (0.1, 0.5), "speck": (0.008, 0.02)}
_PLACES_TRIED = 24
# Centres stay this part of the sum of both radii apart, so that at least seven tenths of every thing show.
_OVERLAP = 0.82


@dataclass(frozen=True)
class Thing:
    """One object. x, y, radius: in image sides (x to the right, y down); depth in metres; rotation in radians."""

    shape: str
    color: str
    texture: str
    size: str
    glyph: str | None
    x: float
    y: float
    radius: float
    depth: float
    rotation: float


@dataclass(frozen=True)
class Clutter:
    """One piece of background, behind all things, that no answer counts.

    kind: "blob", "shard" or "line", outlines that no thing has in muted colours, or "speck", a dot of any colour and
    at most a third as large as the smallest thing. color: red, green, blue in 0..255; the rest as a Thing's.
    """

    kind: str
    x: float
    y: float
    radius: float
    depth: float
    angle: float
    color: tuple[int, int, int]
    texture: str


@dataclass(frozen=True)
class Layout:
    """A scene before rendering. things: nearest first; clutter: farthest first."""

    seed: int
    things: tuple[Thing, ...]
    clutter: tuple[Clutter, ...]


def make_layout(seed: int) -> Layout:
    """Draw one scene: 4 to 14 pieces of clutter and 1 to 8 things, a few less if not all find a place.

    Raises: ValueError for a seed outside the splits.
    """
    split = split_of(seed)
    rng = np.random.default_rng(seed)
    pairs = _pairs(rng, held_out=split == "heldout")
    things: list[Thing] = []
    for shape, color in pairs:
        thing = _place(rng, shape, color, things)
        if thing is not None:
            things.append(thing)
    things.sort(key=lambda thing: thing.depth)
    clutter = sorted((_clutter(rng) for _ in range(rng.integers(4, 15))), key=lambda piece: -piece.depth)
    return Layout(seed, tuple(things), tuple(clutter))


def _pairs(rng: np.random.Generator, held_out: bool) -> list[tuple[str, str]]:
    """Shape and colour of every thing. In two scenes of five some things share a colour or a shape, to be counted."""
    count = int(rng.integers(1, MAX_THINGS + 1))
    theme = rng.random()
    shared = int(rng.integers(2, 6)) if theme < 0.4 else 0
    theme_shape, theme_color = _choice(rng, SHAPES), _choice(rng, COLORS)
    pairs: list[tuple[str, str]] = []
    while len(pairs) < count:
        shape = theme_shape if len(pairs) < shared and theme < 0.2 else _choice(rng, SHAPES)
        color = theme_color if len(pairs) < shared and theme >= 0.2 else _choice(rng, COLORS)
        if (color, shape) not in HELD_OUT:
            pairs.append((shape, color))
    if held_out:
        color, shape = HELD_OUT[int(rng.integers(len(HELD_OUT)))]
        pairs[int(rng.integers(count))] = (shape, color)
        # First, so that it is never the one that finds no place.
        pairs.sort(key=lambda pair: pair != (shape, color))
    return pairs


def _place(rng: np.random.Generator, shape: str, color: str, others: list[Thing]) -> Thing | None:
    """The thing at a free place, or None if none of a few random places is free."""
    texture, size = _choice(rng, TEXTURES), _choice(rng, SIZES)
    rotation = float(rng.uniform(0, 2 * np.pi))
    glyph_drawn = _choice(rng, GLYPHS) if rng.random() < 0.6 else None
    for _ in range(_PLACES_TRIED):
        depth = float(rng.uniform(*DEPTHS))
        radius = float(_PHYSICAL_RADIUS[size] * rng.uniform(0.92, 1.08) / depth)
        x, y = rng.uniform(radius, 1 - radius, 2).tolist()
        free = all(np.hypot(x - o.x, y - o.y) >= _OVERLAP * (radius + o.radius) for o in others)
        if free:
            # A sign in the hole of a ring would make it a circle with a sign.
            glyph = glyph_drawn if radius >= _GLYPH_RADIUS and shape != "ring" else None
            return Thing(shape, color, texture, size, glyph, x, y, radius, depth, rotation)
    return None


def _clutter(rng: np.random.Generator) -> Clutter:
    kind = _choice(rng, ("blob", "blob", "shard", "line", "speck"))
    radius = rng.uniform(*_CLUTTER_RADII[kind])
    x, y = rng.uniform(0, 1, 2).tolist()
    grey = rng.uniform(40, 215)
    tint = rng.uniform(-28, 28, 3) if kind != "speck" else rng.uniform(-120, 120, 3)
    red, green, blue = np.clip(grey + tint, 0, 255).astype(int).tolist()
    depth, angle = float(rng.uniform(8, 8.9)), float(rng.uniform(0, 2 * np.pi))
    return Clutter(kind, x, y, float(radius), depth, angle, (red, green, blue), _choice(rng, TEXTURES))


def _choice(rng: np.random.Generator, options: tuple[str, ...]) -> str:
    return options[int(rng.integers(len(options)))]
