"""Charts put values where they belong and leave gaps where there are none."""

import math

from vistok.report.svg_chart import Bar, Bars, Curve, LineChart, Mark


def test_higher_is_higher_and_later_is_further_right() -> None:
    chart = LineChart("t", "x", "y", [Curve("a", [Mark(3, 9), Mark(1, 1)])])
    for view in chart.views:
        first, second = view.paths[0].dots
        assert first.x < second.x and first.y > second.y
        assert view.left <= first.x <= view.right and view.top <= second.y <= view.bottom
    assert [view.size for view in chart.views] == ["wide", "narrow"]


def test_a_line_has_a_gap_where_a_value_is_none() -> None:
    values = [1.0, 2.0, math.nan, 3.0, math.inf, 4.0, 5.0]
    chart = LineChart("t", "x", "y", [Curve("a", [Mark(x, y) for x, y in enumerate(values)])], small=True)
    pieces = chart.views[0].paths[0].pieces
    assert [len(piece.split()) for piece in pieces] == [2, 2]
    assert len(chart.views[0].paths[0].dots) == 5


def test_equal_steps_of_a_logarithm_are_equally_far() -> None:
    chart = LineChart("t", "x", "y", [Curve("a", [Mark(x, 1) for x in (1, 10, 100)])], log=True, small=True)
    places = [dot.x for dot in chart.views[0].paths[0].dots]
    assert math.isclose(places[1] - places[0], places[2] - places[1], abs_tol=0.02)


def test_the_front_is_joined_from_left_to_right() -> None:
    marks = [Mark(3, 3, front=True), Mark(2, 9), Mark(1, 1, front=True)]
    view = LineChart("t", "x", "y", [Curve("a", marks)], front_name="front").views[0]
    first, second = (float(pair.split(",")[0]) for pair in view.front.split())
    assert first < second


def test_a_chart_without_a_finite_value_says_so() -> None:
    chart = LineChart("t", "x", "y", [Curve("a", [Mark(1, math.nan)])])
    assert chart.empty and "no finite value" in chart.summary and len(chart.views) == 2


def test_bars_stand_on_zero_as_high_as_they_count() -> None:
    bars = Bars("t", "x", "y", [Bar("0", 0, "none"), Bar("1", 5, "five"), Bar("2", 10, "ten")])
    tops, heights = [each[1] for each in bars.drawn], [each[3] for each in bars.drawn]
    assert heights[0] == 0 and math.isclose(heights[2], 2 * heights[1], abs_tol=0.02)
    assert all(math.isclose(top + height, bars.bottom, abs_tol=0.02) for top, height in zip(tops, heights, strict=True))
    assert all(text == str(int(text)) for _, text in bars.up)


def test_ends_and_levels_that_are_no_number_are_left_out() -> None:
    marks = [Mark(1, 1, math.nan, 2), Mark(2, 2, 1, math.inf)]
    view = LineChart("t", "x", "y", [Curve("a", marks)], level=("unpruned", math.nan)).views[0]
    assert view.level is None
    assert [(dot.low is None, dot.high is None) for dot in view.paths[0].dots] == [(True, False), (False, True)]


def test_where_a_logarithm_has_no_value_the_line_has_a_gap() -> None:
    chart = LineChart("t", "x", "y", [Curve("a", [Mark(x, 1) for x in (0, 1, 10)])], log=True)
    assert len(chart.views[0].paths[0].dots) == 2 and "x from 1 to 10" in chart.summary
    assert LineChart("t", "x", "y", [Curve("a", [Mark(0, 1)])], log=True).empty


def test_values_at_the_ends_of_what_floats_hold_do_not_stop_a_page() -> None:
    for values in ((-1e308, 1.7e308, 1.0, 2.0), (5e-324, 5e-324), (1e-310, 2e-310)):
        chart = LineChart("t", "x", "y", [Curve("a", [Mark(x, y) for x, y in enumerate(values)])], small=True)
        assert len(chart.views[0].paths[0].dots) == 2
