"""Who is beaten by nobody: the Pareto front of points that cost something and are worth something."""

from collections.abc import Sequence


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Numbers of the points (cost, worth) that no other one beats, in their order.

    One point beats another if it costs no more and is worth no less, and one of the two strictly.
    """
    return [number for number, point in enumerate(points) if not any(_beats(other, point) for other in points)]


def _beats(one: tuple[float, float], other: tuple[float, float]) -> bool:
    saved, gained = other[0] - one[0], one[1] - other[1]
    return saved >= 0 and gained >= 0 and (saved > 0 or gained > 0)
