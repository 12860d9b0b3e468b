from vistok.bench.adaptive import run


def test_dropping_is_compared_with_masking_after_both_gave_the_same() -> None:
    cases = list(run(rounds=1, batch=1))
    assert [[timing.name for timing in timings] for _, timings in cases] == [["compact (halted dropped)", "masked"]] * 2
    assert all(timing.seconds > 0 for _, timings in cases for timing in timings)
