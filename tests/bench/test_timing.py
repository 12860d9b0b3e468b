import pytest

from vistok.bench.timing import in_turn


def test_candidates_take_turns_after_one_warm_up_and_the_first_is_the_base():
    calls = []
    timings = in_turn({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, rounds=2)
    assert calls == ["a", "b"] * 3
    assert [timing.name for timing in timings] == ["a", "b"] and timings[0].ratio == 1.0
    assert all(timing.seconds > 0 for timing in timings)


def test_no_rounds_is_an_error():
    with pytest.raises(ValueError, match="rounds >= 1"):
        in_turn({"a": list}, rounds=0)
