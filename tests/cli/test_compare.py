"""`vistok compare pruners` puts all of them in one table."""

import csv
from pathlib import Path
from typing import Any

import pytest

import vistok
from vistok.cli.compare import _ready
from vistok.cli.main import main


def test_all_pruners_are_compared_but_for_nets_that_were_trained_for_another_model() -> None:
    everything = set(vistok.list_pruners())
    assert everything - set(_ready("micro_lvlm")) == {"explain_compressor"}
    assert everything - set(_ready("somewhere/else")) == {"explain_compressor", "explain_micro"}


def test_the_table_has_every_method_and_budget_and_the_front_is_named(
    tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    args = [
        "--methods",
        "sweep,visionzip",
        "--budgets",
        "0.25,0.1",
        "--questions",
        "14",
        "--out",
        str(tmp_path / "out"),
    ]
    assert main(["compare", "pruners", *args]) == 0
    with open(tmp_path / "out" / "table.csv", encoding="utf-8") as lines:
        rows = [(row["method"], row["budget"]) for row in csv.DictReader(lines)]
    names = ["random", "uniform", "pool", "downsample", "sweep", "visionzip"]
    assert rows == [("unpruned", "1"), *((name, budget) for budget in ("0.25", "0.1") for name in names)]
    assert "Pareto front: " in capsys.readouterr().out
