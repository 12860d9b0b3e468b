"""Pictures of scenes with one label each: what can be read off a whole picture, for probes of image features.

Of a portrait the attributes and the place of its lone thing, of a whole scene the count and what the nearest thing is.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vistok.data.scenes.layout import COLORS, MAX_THINGS, SHAPES, SIZES, TEXTURES, Layout, make_layout
from vistok.data.scenes.portraits import portrait
from vistok.data.scenes.render import render

_COLUMNS = 4


@dataclass(frozen=True)
class Attribute:
    """One question about a picture. view: a key of VIEWS; classes: names of the labels."""

    view: str
    classes: tuple[str, ...]
    label: Callable[[Layout], int]


@dataclass(frozen=True)
class LabelledScenes:
    """images [N, S, S, 3] uint8; labels: attribute -> [N] int64, places in its classes."""

    images: NDArray[np.uint8]
    labels: dict[str, NDArray[np.int64]]


VIEWS: Mapping[str, Callable[[int], Layout]] = {"portrait": portrait, "scene": make_layout}


def _of_nearest(view: str, name: str, classes: tuple[str, ...]) -> Attribute:
    return Attribute(view, classes, lambda layout: classes.index(getattr(layout.things[0], name)))


def _column(layout: Layout) -> int:
    """Which quarter of the places that a large thing can have its centre at, from the left."""
    return min(_COLUMNS - 1, max(0, int((layout.things[0].x - 0.25) / 0.5 * _COLUMNS)))


ATTRIBUTES: Mapping[str, Attribute] = {
    "color": _of_nearest("portrait", "color", COLORS),
    "shape": _of_nearest("portrait", "shape", SHAPES),
    "texture": _of_nearest("portrait", "texture", TEXTURES),
    "size": _of_nearest("portrait", "size", SIZES),
    "column": Attribute("portrait", tuple(map(str, range(1, _COLUMNS + 1))), _column),
    "count": Attribute("scene", tuple(map(str, range(1, MAX_THINGS + 1))), lambda layout: len(layout.things) - 1),
    "nearest_color": _of_nearest("scene", "color", COLORS),
    "nearest_shape": _of_nearest("scene", "shape", SHAPES),
}


def labelled_scenes(view: str, seeds: Sequence[int], side: int) -> LabelledScenes:
    """Render one picture for each seed, with the labels of all attributes that this view has.

    Raises: ValueError for a view that is not in VIEWS, no seeds, or a side or seed that there is not.
    """
    if view not in VIEWS or not len(seeds):
        raise ValueError(f"scenes: expected a view of {', '.join(VIEWS)} and seeds, got {view!r} and {len(seeds)}")
    layouts = [VIEWS[view](seed) for seed in seeds]
    images = np.stack([render(layout, side).image for layout in layouts])
    asked: dict[str, Any] = {name: about for name, about in ATTRIBUTES.items() if about.view == view}
    labels = {name: np.array([about.label(layout) for layout in layouts]) for name, about in asked.items()}
    return LabelledScenes(images, labels)
