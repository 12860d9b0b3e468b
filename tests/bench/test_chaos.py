import importlib.util

import pytest

from vistok.bench.chaos import chaos

NEEDED = ("moto", "flask", "flask_cors", "s3fs", "psutil")


@pytest.mark.slow
@pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in NEEDED), reason=f"needs {', '.join(NEEDED)} (extra bench)"
)
@pytest.mark.filterwarnings("ignore::ResourceWarning")  # connections of s3fs that are open when its server goes
def test_a_store_survives_kills_failing_requests_and_a_full_server(tmp_path):
    quiet, storm = chaos(tmp_path, 300, seed=0)
    # `chaos` itself raises unless the store verifies, has every picture once and the bytes of the quiet run.
    assert (storm.images, storm.errors) == (quiet.images, quiet.errors) == (294, 6)
    assert (storm.workers_killed, storm.drivers_killed, storm.full, storm.runs) == (2, 1, 1, 3)
    assert storm.requests_failed > 0.02 * storm.requests
