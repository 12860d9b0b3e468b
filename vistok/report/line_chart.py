"""A line chart as a picture: one line per name, with intervals, under one pair of axes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil, floor, log10

from PIL import Image, ImageDraw, ImageFont

_SIZE = (1280, 800)
_LEFT, _TOP, _RIGHT, _BOTTOM = 110, 100, 340, 90
_INK, _PAPER, _FAINT = (20, 20, 20), (255, 255, 255), (215, 215, 215)
# Okabe and Ito's colours, which stay apart for most eyes.
_COLORS = ((0, 114, 178), (230, 159, 0), (0, 158, 115), (204, 121, 167), (213, 94, 0), (86, 180, 233), (110, 110, 110))
_MARK = 6
_LEAST_SPAN, _ROUNDING = 1e-300, 1e-12

Place = Callable[[float, float], tuple[float, float]]


@dataclass(frozen=True)
class Point:
    """A value at x, with the ends of its interval; ringed: marked among the others."""

    x: float
    y: float
    low: float
    high: float
    ringed: bool = False


@dataclass(frozen=True)
class Line:
    """Points that belong together, joined from left to right."""

    label: str
    points: Sequence[Point]


def line_chart(
    lines: Sequence[Line],
    *,
    title: str,
    x_label: str,
    y_label: str,
    level: tuple[str, float] | None = None,
    log: bool = False,
) -> Image.Image:
    """The chart; both axes begin and end at round numbers around the data.

    level: a name and a value, drawn as a horizontal line. log: x by its logarithm. Raises: ValueError if there is no
    point at all, or for a logarithm of what is not above 0.
    """
    points = [point for line in lines for point in line.points]
    if not points:
        raise ValueError("line_chart: expected at least one point, got none")
    heights = [value for point in points for value in (point.low, point.high)] + ([level[1]] if level else [])
    across = (log_ticks if log else ticks)(min(point.x for point in points), max(point.x for point in points))
    up = ticks(min(heights), max(heights))
    sheet = Image.new("RGB", _SIZE, _PAPER)
    draw = ImageDraw.Draw(sheet)
    place = _placing(across, up, log10 if log else float)
    _axes(draw, place, across, up)
    draw.text((_LEFT, 20), title, fill=_INK, font=_font(26))
    draw.text((_LEFT, _TOP - 32), y_label, fill=_INK, font=_font(18))
    middle = (_LEFT + _SIZE[0] - _RIGHT) / 2
    draw.text((middle, _SIZE[1] - 40), x_label, fill=_INK, font=_font(20), anchor="mm")
    if level is not None:
        _level(draw, place, across, level)
    for number, line in enumerate(lines):
        _line(draw, place, line, number)
    return sheet


def ticks(low: float, high: float) -> list[float]:
    """About six round numbers, evenly spaced, the first at most `low`, the last at least `high`."""
    size = max(abs(low), abs(high))
    # What differs by rounding alone is one value: between its ends there are no round numbers to tell apart.
    span = high - low if high - low > _ROUNDING * size else size
    rough = (span if span > _LEAST_SPAN else 1.0) / 5
    unit: float = 10 ** floor(log10(rough))
    step = next(factor * unit for factor in (1, 2, 2.5, 5, 10) if factor * unit >= rough * (1 - 1e-9))
    first, last = floor(low / step + 1e-9), ceil(high / step - 1e-9)
    return [number * step for number in range(first, max(last, first + 1) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """1, 2, 5, 10, 20 and so on, the first at most `low`, the last at least `high`. Raises: ValueError if low <= 0."""
    if low <= 0:
        raise ValueError(f"log_ticks: expected values above 0, got {low}")
    steps = [
        factor * 10.0**power for power in range(floor(log10(low)) - 1, ceil(log10(high)) + 2) for factor in (1, 2, 5)
    ]
    first = max(number for number, step in enumerate(steps) if step <= low * (1 + 1e-9))
    last = min(number for number, step in enumerate(steps) if step >= high * (1 - 1e-9))
    return steps[first : max(last, first + 1) + 1]


def _placing(across: Sequence[float], up: Sequence[float], scale: Callable[[float], float]) -> Place:
    width, height = _SIZE[0] - _LEFT - _RIGHT, _SIZE[1] - _TOP - _BOTTOM

    def place(x: float, y: float) -> tuple[float, float]:
        right = (scale(x) - scale(across[0])) / (scale(across[-1]) - scale(across[0]))
        above = (y - up[0]) / (up[-1] - up[0])
        return _LEFT + right * width, _TOP + (1 - above) * height

    return place


def _axes(draw: ImageDraw.ImageDraw, place: Place, across: Sequence[float], up: Sequence[float]) -> None:
    font = _font(18)
    for x in across:
        foot = place(x, up[0])
        draw.line((place(x, up[-1]), foot), fill=_FAINT)
        draw.text((foot[0], foot[1] + 8), f"{x:g}", fill=_INK, font=font, anchor="ma")
    for y in up:
        start = place(across[0], y)
        draw.line((start, place(across[-1], y)), fill=_FAINT)
        draw.text((start[0] - 10, start[1]), f"{y:g}", fill=_INK, font=font, anchor="rm")
    draw.line((place(across[0], up[-1]), place(across[0], up[0]), place(across[-1], up[0])), fill=_INK, width=2)


def _level(draw: ImageDraw.ImageDraw, place: Place, across: Sequence[float], level: tuple[str, float]) -> None:
    start, end = place(across[0], level[1]), place(across[-1], level[1])
    draw.line((start, end), fill=_INK, width=2)
    draw.text((end[0] + 10, end[1]), level[0], fill=_INK, font=_font(18), anchor="lm")


def _line(draw: ImageDraw.ImageDraw, place: Place, line: Line, number: int) -> None:
    """One line, with its name in the legend at the right."""
    color, mark = _COLORS[number % len(_COLORS)], number // len(_COLORS)
    own = sorted(line.points, key=lambda point: point.x)
    draw.line([place(point.x, point.y) for point in own], fill=color, width=3)
    for point in own:
        # Lines that share their x stand side by side, so that no interval hides another.
        shift = 4 * (number % 7 - 3)
        top, foot = place(point.x, point.high), place(point.x, point.low)
        draw.line(((top[0] + shift, top[1]), (foot[0] + shift, foot[1])), fill=color, width=1)
        _marker(draw, place(point.x, point.y), color, mark)
        if point.ringed:
            draw.circle(place(point.x, point.y), _MARK + 5, outline=_INK, width=2)
    left, middle = _SIZE[0] - _RIGHT + 110, _TOP + 26 * number + 20
    draw.line(((left, middle), (left + 34, middle)), fill=color, width=3)
    _marker(draw, (left + 17, middle), color, mark)
    draw.text((left + 44, middle), line.label, fill=_INK, font=_font(18), anchor="lm")


def _marker(draw: ImageDraw.ImageDraw, at: tuple[float, float], color: tuple[int, int, int], mark: int) -> None:
    """A disc, or another shape for lines that share a colour."""
    if mark == 0:
        draw.circle(at, _MARK, fill=color)
    else:
        draw.regular_polygon((*at, _MARK + 2), 2 + mark, fill=color)


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size=size)
