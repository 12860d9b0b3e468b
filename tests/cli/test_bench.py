import json

import pytest

from vistok.cli.bench import bench


@pytest.mark.slow
def test_a_benchmark_writes_vistok_first_and_a_ratio_for_every_peer(tmp_path):
    bench("nearest_code", rounds=1, json=str(tmp_path / "numbers.json"))
    rows = json.loads((tmp_path / "numbers.json").read_text())
    by_case = {row["case"] for row in rows}
    assert len(by_case) == 3 and len(rows) == 9
    assert all(row["ratio"] == 1.0 for row in rows if row["name"] == "vistok")


def test_an_unknown_benchmark_is_an_error_with_close_matches():
    with pytest.raises(KeyError, match="nearest_code"):
        bench("nearest_cod")
