"""Lettered points on a picture whose depths differ clearly: the relative-depth task of AURORA (arXiv:2412.03548)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

_CIRCLE, _WIDTH, _LETTER_ABOVE = 4, 2, 25  # pixels: radius and line of the circle, letter above the point


@dataclass(frozen=True)
class Marker:
    """A point. x, y: pixels; depth: larger is nearer; name: what is there, for texts that say it."""

    label: str
    x: int
    y: int
    depth: float
    name: str = ""


@dataclass(frozen=True)
class MarkerRules:
    """What points may be drawn; the defaults are AURORA's on pictures of 336 x 336 with depths of 0 to 255.

    counts: how many, each as likely; high: the largest x and y; apart: least distance of two points in pixels;
    contrast: least difference of two depths; tries: draws before a picture is given up.
    """

    counts: tuple[int, ...] = (2, 3, 4, 5)
    labels: tuple[str, ...] = ("A", "B", "C", "D", "E")
    high: int = 300
    apart: float = 20
    contrast: float = 20
    tries: int = 1000

    def __post_init__(self) -> None:
        if not self.counts or min(self.counts) < 2 or max(self.counts) > len(self.labels):
            raise ValueError(
                f"markers: expected counts from 2 to the number of labels, {len(self.labels)}, got {self.counts}"
            )


def place_markers(
    depth: NDArray[Any],
    rng: np.random.Generator,
    rules: MarkerRules | None = None,
    where: NDArray[np.bool_] | None = None,
) -> list[Marker] | None:
    """Points drawn on depth [H, W] (larger is nearer, 0 is unknown), labels shuffled; None if too few places fit.

    where [H, W]: the only places that may be marked. Raises: ValueError if the map is too small for the rules.
    """
    rules = MarkerRules() if rules is None else rules
    if depth.ndim != 2 or min(depth.shape) <= rules.high or (where is not None and where.shape != depth.shape):
        raise ValueError(
            f"markers: expected a depth map [H, W] of more than {rules.high} pixels a side, got {list(depth.shape)}; "
            "resize it, or give MarkerRules(high=...)"
        )
    count = int(rng.choice(rules.counts))
    found: list[tuple[int, int, float]] = []
    for _ in range(rules.tries):
        x, y = rng.integers(0, rules.high + 1, size=2).tolist()
        value = float(depth[y, x])
        free = all(
            np.hypot(x - other[0], y - other[1]) >= rules.apart and abs(value - other[2]) >= rules.contrast
            for other in found
        )
        if value != 0 and free and (where is None or where[y, x]):
            found.append((x, y, value))
        if len(found) == count:
            labels = [rules.labels[place] for place in rng.permutation(count)]
            return [Marker(label, *point) for label, point in zip(labels, found, strict=True)]
    return None


def nearest(markers: Sequence[Marker]) -> Marker:
    """The point with the largest depth value."""
    return max(markers, key=lambda marker: marker.depth)


def farthest(markers: Sequence[Marker]) -> Marker:
    """The point with the smallest depth value."""
    return min(markers, key=lambda marker: marker.depth)


def draw_markers(image: Image.Image, markers: Sequence[Marker]) -> Image.Image:
    """A copy with a red circle around every point and its letter, white on black, above it."""
    drawn = image.convert("RGB")
    pen = ImageDraw.Draw(drawn)
    for marker in markers:
        reach = (marker.x - _CIRCLE, marker.y - _CIRCLE, marker.x + _CIRCLE, marker.y + _CIRCLE)
        pen.ellipse(reach, outline=(255, 0, 0), width=_WIDTH)
        place = (marker.x, max(0, marker.y - _LETTER_ABOVE))
        pen.rectangle(pen.textbbox(place, marker.label), fill=(0, 0, 0))
        pen.text(place, marker.label, fill=(255, 255, 255))
    return drawn
