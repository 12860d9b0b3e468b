"""`vistok compare pruners` puts all of them in one table."""

import csv
import json
import math
from pathlib import Path
from typing import Any

import pytest

import vistok
from vistok.cli._compare_tokenizers import _embedded
from vistok.cli.compare import _ready
from vistok.cli.main import main


def test_tokenizers_are_put_on_one_table_with_the_front_and_files_to_keep(
    tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    out, file = tmp_path / "out", tmp_path / "r.json"
    words = ["vq_nano", "karl_nano", "--count", "2", "--budgets", "0.5,0.125", "--out", str(out), "--json", str(file)]
    assert main(["compare", "tokenizers", *words]) == 0
    with open(out / "table.csv", encoding="utf-8") as lines:
        rows = [(row["tokenizer"], row["budget"]) for row in csv.DictReader(lines)]
    assert rows == [("vq_nano", ""), ("karl_nano", "32"), ("karl_nano", "8")]
    result = json.loads(file.read_text())
    assert result == json.loads((out / "result.json").read_text())
    vq, more, fewer = result["rows"]
    assert vq["tokens"] == 144 and vq["bits_per_pixel"] == pytest.approx(144 * math.log2(64_000) / 9216)
    assert more["psnr"] > fewer["psnr"] and more["bits_per_pixel"] > fewer["bits_per_pixel"]
    assert {path.name for path in out.iterdir()} == {
        *("table.csv", "table.md", "result.json", "plot.png", "report.html")
    }
    assert "Pareto front: vq_nano" in capsys.readouterr().out
    assert "karl_nano" in (out / "report.html").read_text(encoding="utf-8")


def test_where_nothing_could_be_measured_there_is_no_plot_and_none_is_told_of(
    tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise ValueError("expected other pictures")

    monkeypatch.setattr("vistok.cli._compare_tokenizers.rate_point", refuse)  # those that ship take any picture
    (tmp_path / "plot.png").write_bytes(b"of another comparison")
    assert main(["compare", "tokenizers", "vq_nano", "--count", "1", "--out", str(tmp_path)]) == 0
    assert not (tmp_path / "plot.png").exists() and "plot.png" not in capsys.readouterr().out
    assert "expected other pictures" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_those_that_ship_and_decode_are_compared_if_none_is_named() -> None:
    assert _embedded() == ["ett_nano", "karl_nano", "kl_nano", "mingtok_nano", "vq_nano"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["vq_nano", "--budgets", "2"], "--budgets: expected shares of the tokens in (0, 1]"),
        (["vq_nano", "--budgets", "half"], "--budgets: expected shares of the tokens such as"),
        (["vq_nano", "--side", "8"], "expected --side >= 16"),
        (["vq_nan"], "vq_nano"),
    ],
)
def test_mistakes_are_told(capsys: Any, words: list[str], message: str) -> None:
    assert main(["compare", "tokenizers", *words]) == 1
    assert message in " ".join(capsys.readouterr().err.split())


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
        "sweep",
        "--budgets",
        "0.25,0.1",
        "--questions",
        "7",
        "--out",
        str(tmp_path / "out"),
    ]
    assert main(["compare", "pruners", *args]) == 0
    with open(tmp_path / "out" / "table.csv", encoding="utf-8") as lines:
        rows = [(row["method"], row["budget"]) for row in csv.DictReader(lines)]
    names = ["random", "uniform", "pool", "downsample", "sweep"]
    assert rows == [("unpruned", "1"), *((name, budget) for budget in ("0.25", "0.1") for name in names)]
    assert "Pareto front: " in capsys.readouterr().out
