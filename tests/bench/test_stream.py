import pytest

from vistok.bench.stream import run


def test_a_token_late_in_a_stream_is_timed_against_an_early_one() -> None:
    ((case, timings),) = run(rounds=2, early=2, late=20, tokenizer="mingtok_nano", small=False)
    assert case == "width 128, 4 layers"
    assert [timing.name for timing in timings] == ["token 2", "token 20"]
    assert timings[0].ratio == 1.0 and all(timing.seconds > 0 and timing.ratio > 0 for timing in timings)


def test_positions_in_the_wrong_order_are_refused() -> None:
    with pytest.raises(ValueError, match="2 <= early < late, got 30 and 20"):
        list(run(early=30, late=20))
