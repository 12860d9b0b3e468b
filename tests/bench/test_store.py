import numpy as np
import pytest

from vistok.bench import store


@pytest.mark.filterwarnings("ignore:unclosed file.*tar:ResourceWarning")  # webdataset leaves that to the collector
def test_every_format_delivers_the_same_tokens_and_is_timed():
    cases = dict(store.run_with(1, shards=2, samples=250, reads=20))
    peers = [{timing.name for timing in timings} for timings in cases.values()]
    everyone = {"vistok", "Arrow IPC", "Parquet"}
    assert peers == [everyone, {"vistok", "Arrow IPC"}, {"vistok", "Arrow IPC"}, everyone, {"vistok", "WebDataset"}]
    for timings in cases.values():
        assert timings[0].name == "vistok" and timings[0].ratio == 1.0
        assert all(timing.seconds > 0 for timing in timings)


def test_a_format_that_delivers_other_tokens_is_not_timed():
    with pytest.raises(AssertionError, match="other delivers other tokens"):
        store._compare({"vistok": [np.arange(3)], "other": [np.arange(2), np.array([9])]})
