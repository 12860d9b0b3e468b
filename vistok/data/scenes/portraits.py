"""A scene with one thing, large, before a background: enough for a model that is trained in minutes."""

from dataclasses import replace

import numpy as np

from vistok.data.scenes.layout import DEPTHS, Layout, make_layout

_STREAM = 7  # so that portraits take nothing from the draws of the scene they come from
_RADIUS = {"small": 0.24, "large": 0.38}  # image sides, times 0.92 to 1.08
_CLUTTER = 3


def portrait(seed: int) -> Layout:
    """The nearest thing of the scene of `seed` alone, enlarged, without sign and haze, at a random place.

    Raises: ValueError for a seed outside the splits.
    """
    layout = make_layout(seed)
    rng = np.random.default_rng((seed, _STREAM))
    thing = layout.things[0]
    radius = float(_RADIUS[thing.size] * rng.uniform(0.92, 1.08))
    x, y = rng.uniform(radius, 1 - radius, 2).tolist()
    alone = replace(thing, radius=radius, x=x, y=y, glyph=None, depth=DEPTHS[0])
    return Layout(seed, (alone,), layout.clutter[:_CLUTTER])
