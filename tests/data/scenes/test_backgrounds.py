"""Kinds of background: the name that is told is the one that is painted."""

import numpy as np
import pytest

from vistok.data.scenes.backgrounds import BACKGROUNDS, background, background_kind
from vistok.data.scenes.layout import Layout
from vistok.data.scenes.render import background_of, render
from vistok.data.scenes.splits import seeds_of

SIDE = 96
LAYOUTS = {background_of(layout): layout for layout in (Layout(seed, (), ()) for seed in seeds_of("train")[:60])}


def crossings(kind: str) -> float:
    """Changes of sign about the mean from pixel to pixel, per pixel, of the bare background, grain smoothed away."""
    grey = render(LAYOUTS[kind], SIDE).image.astype(float).mean(2)
    smooth = sum(np.roll(grey, (i, j), (0, 1)) for i in (-1, 0, 1) for j in (-1, 0, 1))[2:-2, 2:-2] / 9
    above = smooth > smooth.mean()
    return float((np.diff(above, axis=0) != 0).mean() + (np.diff(above, axis=1) != 0).mean())


def test_every_kind_occurs_and_looks_like_its_name() -> None:
    assert set(LAYOUTS) == set(BACKGROUNDS)
    assert crossings("gradient") < min(crossings(kind) for kind in ("checks", "stripes", "cloth"))
    grey = render(LAYOUTS["checks"], SIDE).image.astype(float).mean(2)
    low, high = np.quantile(grey, (0.02, 0.98))
    near_an_end = np.minimum(abs(grey - low), abs(grey - high)) < 0.35 * (high - low)
    assert near_an_end.mean() > 0.9


@pytest.mark.parametrize("seed", range(5))
def test_telling_the_kind_draws_what_painting_draws(seed: int) -> None:
    told, painted = np.random.default_rng(seed), np.random.default_rng(seed)
    kind = background_kind(told)
    picture = background(painted, SIDE)
    assert kind in BACKGROUNDS and picture.shape == (SIDE, SIDE, 3)
    assert background_of(Layout(seed, (), ())) == background_of(Layout(seed, (), ()))
