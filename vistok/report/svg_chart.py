"""Line charts and bars as SVG in the page, drawn for wide and for narrow screens so that letters stay legible."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, TypeGuard

from vistok.report.line_chart import log_ticks, ticks

_COLORS = 7
_LARGEST = 1e300
_LEFT, _TOP, _RIGHT, _BOTTOM = 44, 12, 14, 38


@dataclass(frozen=True)
class Mark:
    """A value at x, if known with the ends of its interval; text: what it is, for who points at it; front: ringed."""

    x: float
    y: float
    low: float | None = None
    high: float | None = None
    text: str = ""
    front: bool = False


@dataclass(frozen=True)
class Curve:
    """Marks that belong together, joined from left to right."""

    name: str
    marks: Sequence[Mark]


@dataclass(frozen=True)
class Dot:
    """A mark in the chart's own units."""

    x: float
    y: float
    low: float | None
    high: float | None
    text: str
    front: bool


@dataclass(frozen=True)
class Path:
    """A curve in the chart's own units: pieces are runs of points without a gap, as SVG takes them."""

    name: str
    number: int
    pieces: Sequence[str]
    dots: Sequence[Dot]

    @property
    def color(self) -> int:
        """Which of the seven colours."""
        return self.number % _COLORS

    @property
    def dashed(self) -> bool:
        """Whether another curve has the colour already."""
        return self.number >= _COLORS


@dataclass(frozen=True)
class View:
    """The chart at one size; ticks: place and text."""

    size: str
    width: int
    height: int
    left: float
    right: float
    top: float
    bottom: float
    across: Sequence[tuple[float, str]]
    up: Sequence[tuple[float, str]]
    paths: Sequence[Path]
    level: float | None
    front: str


@dataclass(frozen=True)
class LineChart:
    """Curves under one pair of axes. level: a name and a value, drawn across. log: x by its logarithm.

    front_name: what the ringed marks are, which a dotted line joins.

    small: one of several that stand side by side.
    """

    title: str
    x_label: str
    y_label: str
    curves: Sequence[Curve]
    level: tuple[str, float] | None = None
    front_name: str = ""
    log: bool = False
    small: bool = False
    template: ClassVar[str] = "line_chart.html.jinja"

    @cached_property
    def views(self) -> list[View]:
        """The chart drawn for each width of screen."""
        sizes = [("any", 280, 180)] if self.small else [("wide", 780, 400), ("narrow", 340, 280)]
        return [self._view(*size) for size in sizes]

    @property
    def summary(self) -> str:
        """What a reader hears who does not see the chart."""
        marks = [mark for curve in self.curves for mark in curve.marks if self._drawn(mark)]
        names = ", ".join(curve.name for curve in self.curves)
        if not marks:
            return f"{self.title}: no finite value"
        lowest, highest = min(mark.y for mark in marks), max(mark.y for mark in marks)
        return (
            f"{self.title}. {self.y_label} against {self.x_label} of {names}: from {lowest:.4g} to {highest:.4g}, "
            f"{self.x_label} from {min(mark.x for mark in marks):.4g} to {max(mark.x for mark in marks):.4g}."
        )

    @property
    def empty(self) -> bool:
        """Whether there is nothing to draw."""
        return not any(self._drawn(mark) for curve in self.curves for mark in curve.marks)

    def _drawn(self, mark: Mark) -> bool:
        return _finite(mark.x) and _finite(mark.y) and (mark.x > 0 or not self.log)

    def _view(self, size: str, width: int, height: int) -> View:
        marks = [mark for curve in self.curves for mark in curve.marks if self._drawn(mark)]
        level = None if self.level is None else self.level[1]
        ends = [level, *(value for mark in marks for value in (mark.y, mark.low, mark.high))]
        heights = [value for value in ends if _finite(value)]
        across = (log_ticks if self.log else ticks)(*_ends([mark.x for mark in marks]))
        up = ticks(*_ends(heights))
        scale: Callable[[float], float] = math.log10 if self.log else float
        first, last = scale(across[0]), scale(across[-1])
        left, right, top, bottom = _LEFT, width - _RIGHT, _TOP, height - _BOTTOM

        def at_x(x: float) -> float:
            return round(left + (scale(x) - first) / (last - first) * (right - left), 2)

        def at_y(y: float) -> float:
            return round(bottom - (y - up[0]) / (up[-1] - up[0]) * (bottom - top), 2)

        def dot(mark: Mark) -> Dot:
            low, high = (at_y(end) if _finite(end) else None for end in (mark.low, mark.high))
            return Dot(at_x(mark.x), at_y(mark.y), low, high, mark.text, mark.front)

        few = len(marks) <= (30 if self.small else 400)
        paths = []
        for number, curve in enumerate(self.curves):
            own = sorted(curve.marks, key=lambda mark: mark.x)
            dots = [dot(mark) for mark in own if self._drawn(mark)] if few else []
            places = [f"{at_x(mark.x)},{at_y(mark.y)}" if self._drawn(mark) else None for mark in own]
            paths.append(Path(curve.name, number, _pieces(places), dots))
        front = sorted((mark for mark in marks if mark.front), key=lambda mark: (mark.x, mark.y))
        return View(
            *(size, width, height, left, right, top, bottom),
            across=[(at_x(x), _tick(x)) for x in _thinned(across, 3 if width < 500 else 9)],
            up=[(at_y(y), _tick(y)) for y in up],
            paths=paths,
            level=at_y(level) if _finite(level) else None,
            front=" ".join(f"{at_x(mark.x)},{at_y(mark.y)}" for mark in front),
        )


@dataclass(frozen=True)
class SideBySide:
    """Small charts in a grid."""

    title: str
    charts: Sequence["LineChart | Bars"]
    template: ClassVar[str] = "side_by_side.html.jinja"


@dataclass(frozen=True)
class Bar:
    """A bar's label, height, and in words."""

    label: str
    value: float
    text: str


@dataclass(frozen=True)
class Bars:
    """Counts side by side."""

    title: str
    x_label: str
    y_label: str
    bars: Sequence[Bar]
    template: ClassVar[str] = "bars.html.jinja"
    width: ClassVar[int] = 280
    height: ClassVar[int] = 180

    @property
    def summary(self) -> str:
        """What a reader hears who does not see the chart."""
        return f"{self.title}. {self.y_label} by {self.x_label}: " + "; ".join(bar.text for bar in self.bars)

    @cached_property
    def up(self) -> list[tuple[float, str]]:
        """Ticks of the height."""
        return [(self._at(value), _tick(value)) for value in self._ticks]

    @cached_property
    def drawn(self) -> list[tuple[float, float, float, float, Bar, bool]]:
        """Left, top, width and height of each bar, the bar, and whether its label has room."""
        left, right = _LEFT, self.width - _RIGHT
        step = (right - left) / max(1, len(self.bars))
        every = math.ceil(max((len(bar.label) for bar in self.bars), default=1) * 6.5 / step) if self.bars else 1
        foot = self._at(0)
        return [
            (
                round(left + number * step + step * 0.1, 2),
                self._at(bar.value),
                round(step * 0.8, 2),
                round(foot - self._at(bar.value), 2),
                bar,
                number % every == 0,
            )
            for number, bar in enumerate(self.bars)
        ]

    @property
    def bottom(self) -> float:
        """Where the bars stand."""
        return self._at(0)

    @cached_property
    def _ticks(self) -> list[float]:
        # Bars count, and there is no half of a thing.
        return [tick for tick in ticks(0, max((bar.value for bar in self.bars), default=0) or 1) if tick == int(tick)]

    def _at(self, value: float) -> float:
        top, bottom = _TOP, self.height - _BOTTOM
        return round(bottom - value / self._ticks[-1] * (bottom - top), 2)


def _finite(value: float | None) -> TypeGuard[float]:
    """Whether there is a value whose differences to others are finite too."""
    return value is not None and abs(value) <= _LARGEST


def _ends(values: Sequence[float]) -> tuple[float, float]:
    return (min(values), max(values)) if values else (0.0, 1.0)


def _pieces(places: Sequence[str | None]) -> list[str]:
    """Runs of places: where there is none, the line has a gap."""
    runs: list[list[str]] = [[]]
    for place in places:
        if place is not None:
            runs[-1].append(place)
        elif runs[-1]:
            runs.append([])
    return [" ".join(run) for run in runs if len(run) > 1]


def _thinned(values: Sequence[float], most: int) -> Sequence[float]:
    step = math.ceil((len(values) - 1) / most) if len(values) > 1 else 1
    return values[::step]


def _tick(value: float) -> str:
    if value and not 1e-3 <= abs(value) < 1e6:
        return f"{value:.3g}"
    return f"{value:.6g}" if abs(value) < 1e4 else f"{value / 1000:.6g}k"
