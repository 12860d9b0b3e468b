"""`vistok eval lvlm` from a folder to a table and a file, through the model's own `generate`."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers.utils import logging

import vistok
from vistok.cli.main import main
from vistok.data.scenes import KINDS
from vistok.lvlm.micro import MicroSettings, make_model, make_processor
from vistok.lvlm.scene_questions import scene_picture


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny, untrained micro LVLM."""
    folder = tmp_path_factory.mktemp("micro")
    settings = MicroSettings(
        side=48, vision_width=32, vision_layers=4, vision_heads=2, text_width=32, text_heads=4, text_kv_heads=2
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        make_model(settings).half().save_pretrained(folder)
    make_processor(settings).save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def plain_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("NO_COLOR", "1")
    logging.disable_progress_bar()


def run(capsys: Any, *args: str) -> tuple[int, str, str]:
    code = main(["eval", "lvlm", *args])
    told = capsys.readouterr()
    return code, told.out, told.err


def test_thirty_questions_by_kind_with_intervals_and_baselines(folder: Path, tmp_path: Path, capsys: Any) -> None:
    file = tmp_path / "numbers" / "r.json"
    code, out, _ = run(capsys, str(folder), "--questions", "30", "--batch", "8", "--words", "2", "--json", str(file))
    assert code == 0
    result = json.loads(file.read_text())
    assert next(iter(result)) == "accuracy" and 0 <= result["accuracy"] <= 1
    assert list(result["kinds"]) == list(KINDS)
    assert sum(kind["questions"] for kind in result["kinds"].values()) == result["questions"] == 30
    low, high = result["interval"]
    assert low <= result["accuracy"] <= high and 0 < result["blind"] < 1
    assert result["settings"]["split"] == "test" and result["settings"]["side"] == 64
    for kind, scores in result["kinds"].items():
        (line,) = [line for line in out.splitlines() if f" {kind} " in line]
        assert f"{100 * scores['accuracy']:.1f}" in line and f"{100 * scores['blind']:.1f}" in line
    assert max(map(len, out.split("blind: ")[0].splitlines())) <= 80


def test_the_same_command_gives_the_same_numbers_and_splits_differ(folder: Path, tmp_path: Path, capsys: Any) -> None:
    results = []
    for number, split in enumerate(("heldout", "heldout", "validation")):
        file = tmp_path / f"{number}.json"
        run(capsys, str(folder), "--questions", "14", "--split", split, "--words", "1", "--json", str(file))
        results.append({k: v for k, v in json.loads(file.read_text()).items() if k != "seconds"})
    assert results[0] == results[1]
    assert results[2]["settings"] != results[0]["settings"]


def test_a_pruner_and_a_tokenizer_stand_in_between(folder: Path, tmp_path: Path, capsys: Any) -> None:
    file = tmp_path / "r.json"
    common = [str(folder), "--questions", "14", "--words", "1", "--json", str(file)]
    code, out, _ = run(capsys, *common, "--pruner", "uniform", "--budget", "0.25")
    assert code == 0 and "9.0 visual tokens per layer on average" in out
    assert json.loads(file.read_text())["visual_tokens"] == 9.0
    assert run(capsys, *common, "--pruner", "uniform", "--budget", "5")[0] == 0
    assert json.loads(file.read_text())["visual_tokens"] == 5.0
    assert run(capsys, *common, "--tokenizer", "vq_nano")[0] == 0
    assert json.loads(file.read_text())["settings"]["tokenizer"] == "vq_nano"


def test_the_tokenizer_changes_the_picture_that_the_model_sees_and_keeps_its_size() -> None:
    from vistok.cli._eval_lvlm import _through

    read, seed = scene_picture(96), 2 * 2**32
    with _through("vq_nano", read) as seen:
        picture = seen(seed)
    plain = read(seed)
    assert picture.size == plain.size == (96, 96) and picture.tobytes() != plain.tobytes()
    tokenizer = vistok.tokenizer("vq_nano", pretrained=True)
    with torch.no_grad():
        image = tokenizer.decode(tokenizer.encode(tokenizer.preprocess(plain)[None]))[0].clamp(0, 1)
    assert torch.equal(tokenizer.preprocess(picture), (image * 255).round() / 255)


def test_ablations_print_every_setting_beside_every_kind(folder: Path, tmp_path: Path, capsys: Any) -> None:
    file = tmp_path / "r.json"
    code, out, _ = run(capsys, str(folder), "--ablate", "--questions", "14", "--words", "1", "--json", str(file))
    assert code == 0
    result = json.loads(file.read_text())
    names = ["all", "random 50%", "random 25%", "random 10%", "oracle 25%", "low norm 10%", "other picture"]
    assert set(names) <= set(result["ablations"]) and result["accuracy"] == result["ablations"]["all"]["accuracy"]
    assert list(result["ablations"]["all"]["kinds"]) == list(KINDS)
    table = out.split("points above random")[0]
    for name, scores in result["ablations"].items():
        (line,) = [line for line in table.splitlines() if line.strip().startswith(f"{name} ")]
        cells = line.replace(name, "", 1).split()
        assert len(cells) == 1 + len(KINDS) and cells[0] == f"{100 * scores['accuracy']:.0f}"
    assert "…" not in out and "oracle 25%" in result["above_random"]


def test_questions_of_ones_own(folder: Path, tmp_path: Path, capsys: Any) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for seed in (1, 2):
        scene_picture(64)(seed).save(pictures / f"{seed}.png")
    turns = [{"from": "human", "value": "<image>\nwhat color is it ?"}, {"from": "gpt", "value": "Red."}]
    lines = [json.dumps({"image": f"{seed}.png", "conversations": turns + turns}) for seed in (1, 2)]
    data, file = tmp_path / "own.jsonl", tmp_path / "r.json"
    data.write_text("\n".join(lines))
    args = [str(folder), "--data", str(data), "--images", str(pictures), "--words", "1"]
    code, out, _ = run(capsys, *args, "--json", str(file))
    result = json.loads(file.read_text())
    assert code == 0 and result["questions"] == 4 and result["kinds"]["any"]["blind"] == 1.0
    assert "upper bound" in out and result["settings"]["split"] is None
    (pictures / "2.png").unlink()
    code, _, err = run(capsys, *args)
    assert code == 1 and "2.png" in err


def test_mistakes_are_one_line_that_says_what_to_do(folder: Path, tmp_path: Path, capsys: Any) -> None:
    wrong = {
        ("--budget", "0.5"): "expected --pruner",
        ("--images", "x"): "expected --data",
        ("--ablate", "--pruner", "uniform"): "without --data, --pruner",
        ("--questions", "0"): "expected at least 1",
        ("--data", str(tmp_path / "absent.jsonl")): "no such file",
        ("--pruner", "unifrm", "--budget", "0.5", "--questions", "1"): "uniform",
        ("--pruner", "uniform", "--questions", "1"): "budget",
    }
    for args, message in wrong.items():
        code, out, err = run(capsys, str(folder), *args)
        assert code == 1 and message in err and err.strip().splitlines()[-1].startswith("error: ") and not out, args
    code, _, err = run(capsys, str(tmp_path / "absent"))
    assert code == 1 and "expected micro_lvlm, a folder or hf:owner/name" in err
