import json
from pathlib import Path

import pytest
import torch

from vistok.cli.main import main
from vistok.train.vqt_results import Facts, Result, read_results, write_result


def put(run: Path, task: str, tokens: int, share: float, kept: float | None = None) -> None:
    """A result with the given share of 200 images right in both runs, the first ones; 0.9 with a new head."""
    images = torch.arange(200)
    right = (images < share * 200).expand(2, -1)
    facts = Facts(
        task, tokens, 6, 96, None if kept is None else 28, [1, 2], 0.1, 0.01, 0.5, None if tokens else 0.8, 1.0
    )
    again = () if kept is None else ((images < share * 200).expand(2, -1) for share in (0.9, kept))
    write_result(run, Result(facts, right, *again))


def test_the_table_sets_each_readout_beside_the_probe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for task, shares in {"color": (0.6, 0.8), "size": (0.7, 0.7)}.items():
        put(tmp_path, task, 0, shares[0])
        put(tmp_path, task, 1, shares[1], shares[1] - 0.1)
    numbers = tmp_path / "numbers.json"
    assert main(["eval", "vqt", str(tmp_path), "--json", str(numbers)]) == 0
    said = capsys.readouterr().out
    assert "+20.0" in said and "200 test images a task, seeds 1, 2" in said
    rows = {(row["task"], row["readout"]): row for row in json.loads(numbers.read_text())["rows"]}
    assert set(rows) == {(task, name) for task in ("color", "size", "mean") for name in ("linear", "vqt_t1")}
    vqt = rows["color", "vqt_t1"]
    assert vqt["accuracies"] == pytest.approx([0.8, 0.8]) and vqt["kept_accuracy"] == pytest.approx(0.7)
    assert vqt["over_linear"]["mean"] == pytest.approx(0.2)
    assert vqt["over_linear"]["low"] < 0.2 < vqt["over_linear"]["high"]
    assert vqt["refit_accuracy"] == pytest.approx(0.9)
    assert vqt["kept_over_all"]["mean"] == pytest.approx(-0.2)
    assert rows["size", "vqt_t1"]["over_linear"] == {"mean": 0, "low": 0, "high": 0}
    mean = rows["mean", "vqt_t1"]
    assert mean["over_linear"]["mean"] == pytest.approx(0.1) and mean["accuracy"] == pytest.approx(0.75)
    assert rows["mean", "linear"]["solved"] == pytest.approx(0.8) and rows["mean", "linear"]["over_linear"] is None


def test_without_a_probe_there_is_no_difference(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put(tmp_path, "color", 1, 0.8)
    numbers = tmp_path / "numbers.json"
    assert main(["eval", "vqt", str(tmp_path), "--json", str(numbers)]) == 0
    (row,) = json.loads(numbers.read_text())["rows"]
    assert row["over_linear"] is None and row["kept_over_all"] is None


def test_another_folder_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", "vqt", str(tmp_path)]) == 1
    assert "expected the folder of `vistok train vqt`" in " ".join(capsys.readouterr().err.split())


def test_a_result_from_before_heads_were_fitted_again_leaves_their_mean_open(tmp_path: Path) -> None:
    for task, share in (("color", 0.8), ("size", 0.7)):
        put(tmp_path, task, 0, 0.6)
        put(tmp_path, task, 1, share, kept=0.7)
    color = next(result for result in read_results(tmp_path) if result.facts.task == "color" and result.facts.tokens)
    write_result(tmp_path, Result(color.facts, color.right, None, color.kept_right))
    assert main(["eval", "vqt", str(tmp_path), "--json", str(tmp_path / "t.json")]) == 0
    rows = {(row["task"], row["readout"]): row for row in json.loads((tmp_path / "t.json").read_text())["rows"]}
    assert rows["size", "vqt_t1"]["refit_accuracy"] == pytest.approx(0.9)
    for task in ("color", "mean"):
        row = rows[task, "vqt_t1"]
        assert row["refit_accuracy"] is None and row["kept_over_all"] is None and row["kept_accuracy"] is not None
