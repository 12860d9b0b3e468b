"""The front is who is beaten by nobody."""

from vistok.metrics.pareto import pareto_front


def test_a_point_is_beaten_by_one_that_costs_no_more_and_is_worth_no_less() -> None:
    points = [(1.0, 5.0), (2.0, 9.0), (2.0, 8.0), (3.0, 9.0), (0.5, 1.0)]
    assert pareto_front(points) == [0, 1, 4]


def test_equal_points_do_not_beat_one_another() -> None:
    assert pareto_front([(1.0, 2.0), (1.0, 2.0)]) == [0, 1]
    assert pareto_front([]) == []
