"""`vistok eval prune` from a folder to a table, a CSV, a plot and answers that a second run does not ask for again."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers.utils import logging

from vistok.cli.main import main
from vistok.lvlm.micro import MicroSettings, make_model, make_processor
from vistok.lvlm.pruning_table import COLUMNS
from vistok.lvlm.scene_questions import scene_picture

BASELINES = ["random", "uniform", "pool", "downsample"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny, untrained micro LVLM."""
    folder = tmp_path_factory.mktemp("micro")
    settings = MicroSettings(
        side=48, vision_width=32, vision_layers=4, vision_heads=2, text_width=32, text_heads=4, text_kv_heads=2
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        make_model(settings).half().save_pretrained(folder)
    make_processor(settings).save_pretrained(folder)
    return str(folder)


@pytest.fixture(autouse=True)
def plain_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("NO_COLOR", "1")
    logging.disable_progress_bar()


def run(capsys: Any, *args: str) -> tuple[int, str, str]:
    code = main(["eval", "prune", *args, "--words", "1", "--batch", "14"])
    told = capsys.readouterr()
    return code, told.out, " ".join(told.err.split())


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_28_questions_two_methods_and_the_same_again(model: str, tmp_path: Path, capsys: Any) -> None:
    out, file = tmp_path / "out", tmp_path / "r.json"
    args = (model, "--questions", "28", "--budgets", "0.25", "--out", str(out))
    code, text, _ = run(capsys, *args, "--methods", "k_center,todre", "--json", str(file))
    assert code == 0
    names = [*BASELINES, "k_center", "todre"]
    with open(out / "table.csv", encoding="utf-8") as lines:
        table = list(csv.DictReader(lines))
    assert tuple(table[0]) == COLUMNS
    assert [(row["method"], float(row["budget"])) for row in table] == [
        ("unpruned", 1.0),
        *((name, 0.25) for name in names),
    ]
    assert {row["questions"] for row in table} == {"28"}
    result = json.loads(file.read_text())
    assert result == json.loads((out / "result.json").read_text())
    assert [row["method"] for row in result["rows"]] == [row["method"] for row in table]
    assert result["settings"]["methods"] == names and result["settings"]["questions"] == 28
    with Image.open(out / "plot.png") as plot:
        assert plot.format == "PNG"
    for name in names[1:]:
        assert f"{name} loses to random " in text
    shown = result["shown"]
    rows, cols = shown["questions"][0]["grid"]
    for told in shown["rows"]:
        counts = [bin(int(digits, 16)).count("1") for digits in told["kept"] if digits]
        assert len(told["answers"]) == len(told["kept"]) == len(shown["questions"]) == 4
        # The smaller picture has no tokens of its own that would be kept, and the unpruned model keeps all.
        expected = [] if told["method"] in ("unpruned", "downsample") else [round(0.25 * rows * cols)] * 4
        assert counts == expected, told["method"]
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "data-kept" in page and "Pareto front" in page and "k_center" in page
    assert (out / "table.md").read_text().startswith("| method | budget |")
    answers = contents(out / "answers")
    assert len(answers) == 1 + len(names)
    # A method more asks for that one alone; one answer file gone, it alone is made again.
    (out / "answers" / "pool_0.25.json").unlink()
    stamps = {path: path.stat().st_mtime_ns for path in (out / "answers").iterdir()}
    code, _, _ = run(capsys, *args, "--methods", "k_center", "todre", "todre_v1")
    assert code == 0 and {path: path.stat().st_mtime_ns for path in stamps} == stamps
    after = contents(out / "answers")
    assert after.keys() - answers.keys() == {"todre_v1_0.25.json"}
    assert {name: after[name] for name in answers} == answers
    code, _, told = run(capsys, model, "--questions", "14", "--budgets", "0.25", "--out", str(out))
    assert code == 1 and "unpruned.json: expected answers with questions 14, got those with 28" in told


def test_settings_are_chosen_on_validation_scenes_alone(model: str, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "mine.yaml").write_text("base: k_center\ntune:\n  start: [max_norm, medoid]\n")
    out = tmp_path / "out"
    given = ("--methods", str(tmp_path / "mine.yaml"), "--budgets", "0.25", "--questions", "14", "--out", str(out))
    code, text, _ = run(capsys, model, *given, "--tune", "--tune-questions", "28")
    assert code == 0
    tried = [json.loads((out / "tuning" / f"mine_0.25_{number}.json").read_text()) for number in (0, 1)]
    assert len(contents(out / "tuning")) == 2 and all(len(each["answers"]) == 28 for each in tried)
    final = json.loads((out / "answers" / "mine_0.25.json").read_text())["settings"]
    assert tried[0]["settings"]["questions_sha256"] != final["questions_sha256"] and final["questions"] == 14
    (row,) = [row for row in json.loads((out / "result.json").read_text())["rows"] if row["method"] == "mine"]
    assert row["settings"]["start"] in ("max_norm", "medoid")
    assert final["pruner"]["settings"]["start"] == row["settings"]["start"]
    assert f"start={row['settings']['start']}" in text


def test_questions_of_ones_own_into_a_folder_of_their_own(
    model: str, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    scene_picture(64)(0).save(tmp_path / "scene.png")
    turns = [{"from": "human", "value": "<image>\nhow many things are there ?"}, {"from": "gpt", "value": "4"}]
    (tmp_path / "own.jsonl").write_text(json.dumps({"image": "scene.png", "conversations": turns}) + "\n")
    code, text, _ = run(capsys, model, "--data", "own.jsonl", "--budgets", "0.5", "--methods", "transprune")
    assert code == 0 and "transprune refused at 50%: layer 8: expected one of 0..7" in text
    (folder,) = (tmp_path / "prune-eval").iterdir()
    assert {path.name for path in folder.iterdir()} == {
        *("answers", "table.csv", "table.md", "result.json", "plot.png", "report.html")
    }


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--budgets", "0.5,1.5"], "--budgets: expected shares of the visual tokens in (0, 1]"),
        (["--budgets", "half"], "--budgets: expected shares of the visual tokens such as 0.5,0.25"),
        (["--tune-questions", "0"], "--questions, --tune-questions: expected at least 1, got 14, 0"),
        (["--images", "pictures"], "--images: expected --data with it"),
        (["--data", "own.jsonl", "--tune"], "--tune: expected the rendered scenes"),
        (["--data", "none.jsonl"], "--data: no such file: none.jsonl"),
        (["--methods", "todra"], "no pruner 'todra'; did you mean todre"),
        (["--methods", "none.yaml"], "--methods: no such file: none.yaml"),
        (["--methods", "explain_compressor"], "explain_compressor: expected weights"),
    ],
)
def test_mistakes_are_told_before_anything_is_asked(
    model: str, tmp_path: Path, capsys: Any, args: list[str], message: str
) -> None:
    out = tmp_path / "out"
    code, _, told = run(capsys, model, "--questions", "14", "--out", str(out), *args)
    assert code == 1 and message in told
    assert not out.exists()
