"""A chart shows every point where it belongs, and axes of round numbers."""

import math

import numpy as np
import pytest

from vistok.report.line_chart import Line, Point, line_chart, log_ticks, ticks


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.0, 1.0, [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (14.0, 72.0, [0.0, 20.0, 40.0, 60.0, 80.0]),
        (44.1, 91.0, [40.0, 50.0, 60.0, 70.0, 80.0, 90.0, 100.0]),
        (36.0, 36.0, [30.0, 40.0]),
        (0.0, 0.0, [0.0, 0.2]),
    ],
)
def test_ticks_are_round_and_hold_the_data_between_them(low: float, high: float, expected: list[float]) -> None:
    assert ticks(low, high) == pytest.approx(expected)
    assert ticks(low, high)[0] <= low and ticks(low, high)[-1] >= high


@pytest.mark.parametrize("value", [1.0, 0.3, -372393.2383246779, 1e-5])
def test_values_that_differ_by_rounding_alone_are_one_value_to_an_axis(value: float) -> None:
    above = value
    for _ in range(6):
        above = math.nextafter(above, math.inf)
        found = ticks(value, above)
        assert len(set(found)) > 1 and found == ticks(value, value)


def of_color(chart: np.ndarray, color: tuple[int, int, int]) -> np.ndarray:
    """Rows and columns of the pixels of one colour, the legend left out."""
    return np.argwhere((chart[:, :980] == color).all(-1))


def test_higher_values_stand_higher_and_later_ones_further_right() -> None:
    lines = [Line("first", [Point(1, 10, 9, 11)]), Line("second", [Point(2, 20, 18, 22)])]
    chart = np.asarray(line_chart(lines, title="t", x_label="x", y_label="y", level=("all", 25)))
    blue, orange = (of_color(chart, color).mean(0) for color in ((0, 114, 178), (230, 159, 0)))
    assert blue[0] > orange[0] and blue[1] < orange[1]


def test_a_line_joins_its_points_whatever_their_order() -> None:
    points = [Point(3, 5, 4, 6), Point(1, 1, 0, 2), Point(2, 9, 8, 10)]
    charts = [
        line_chart([Line("a", order)], title="t", x_label="x", y_label="y").tobytes()
        for order in (points, points[::-1])
    ]
    assert charts[0] == charts[1]


def test_more_lines_than_colours_differ_by_their_marks() -> None:
    lines = [Line(str(number), [Point(number, number, number, number)]) for number in range(9)]
    chart = np.asarray(line_chart(lines, title="t", x_label="x", y_label="y"))
    assert len(of_color(chart, (0, 114, 178))) > 0
    one = line_chart([*lines[:7], lines[0]], title="t", x_label="x", y_label="y").tobytes()
    assert one != line_chart(lines[:7], title="t", x_label="x", y_label="y").tobytes()


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0.25, 4.0, [0.2, 0.5, 1, 2, 5]), (1.0, 1.0, [1, 2]), (1.0, 10.0, [1, 2, 5, 10]), (3e-4, 3e-4, [2e-4, 5e-4])],
)
def test_ticks_of_a_logarithm_hold_the_data_between_them(low: float, high: float, expected: list[float]) -> None:
    assert log_ticks(low, high) == pytest.approx(expected)


def test_a_logarithm_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="expected values above 0, got 0"):
        log_ticks(0.0, 1.0)


def test_a_ring_is_drawn_around_what_is_ringed() -> None:
    one, two = (
        np.asarray(line_chart([Line("a", [Point(1, 2, 2, 2, ringed=ringed)])], title="t", x_label="x", y_label="y"))
        for ringed in (False, True)
    )
    assert (one != two).any() and (of_color(two, (20, 20, 20)).shape[0] > of_color(one, (20, 20, 20)).shape[0])


def test_a_chart_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="expected at least one point"):
        line_chart([Line("empty", [])], title="t", x_label="x", y_label="y")
