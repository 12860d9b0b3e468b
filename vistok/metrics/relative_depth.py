"""Which of some points is nearest, read off a decoded depth map by program: what a model's map alone is good for."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray


def read_depth(depth: NDArray[Any], points: Sequence[tuple[float, float]], side: float) -> NDArray[np.float64]:
    """Values of a map [h, w] at points (x, y) of a picture of `side` x `side` pixels, [n] float64.

    A point belongs to the map's pixel that lies over it. Raises: ValueError naming a point outside the picture.
    """
    if depth.ndim != 2:
        raise ValueError(f"relative depth: expected a map [h, w], got {list(depth.shape)}")
    outside = [point for point in points if not (0 <= point[0] < side and 0 <= point[1] < side)]
    if outside:
        raise ValueError(f"relative depth: expected points within {side} x {side} pixels, got {outside[0]}")
    rows = [int(y * depth.shape[0] / side) for _, y in points]
    columns = [int(x * depth.shape[1] / side) for x, _ in points]
    return np.asarray(depth[rows, columns], dtype=np.float64)


def nearest_point(depth: NDArray[Any], points: Sequence[tuple[float, float]], side: float) -> int:
    """The place among `points` of the one with the largest value (larger is nearer), of equal ones the first."""
    if not points:
        raise ValueError("relative depth: expected at least one point, got none")
    return int(np.argmax(read_depth(depth, points, side)))
