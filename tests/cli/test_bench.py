import json

import pytest

from vistok.bench import _lookup_free, _merging, _quantization, _selection
from vistok.cli.bench import bench


def test_a_benchmark_writes_vistok_first_and_a_ratio_for_every_peer(tmp_path, monkeypatch):
    small = {"a": _selection.compact_candidates(2, 9, 4, 3), "b": _quantization.statistics_candidates(50, 8, 4)}
    monkeypatch.setattr(_quantization, "cases", lambda: iter(small.items()))
    for other in (_lookup_free, _merging, _selection):
        monkeypatch.setattr(other, "cases", lambda: iter(()))
    bench("ops", rounds=1, json=str(tmp_path / "numbers.json"))
    rows = json.loads((tmp_path / "numbers.json").read_text())
    assert [(row["case"], row["name"]) for row in rows][::2] == [("a", "vistok"), ("b", "vistok")]
    assert len(rows) == 4 and all(row["ratio"] == 1.0 for row in rows if row["name"] == "vistok")


def test_an_unknown_benchmark_is_an_error_with_close_matches():
    with pytest.raises(KeyError, match="encode"):
        bench("encod")
