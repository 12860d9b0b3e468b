import json

import pytest
from PIL import Image
from skimage import data

from vistok.cli.main import main


def _run(capsys, *words: object) -> tuple[int, str, str]:
    capsys.readouterr()
    code = main(["data", *map(str, words)])
    said = capsys.readouterr()
    return code, " ".join(said.out.split()), " ".join(said.err.split())


def test_scenes_are_written_and_summed_up(tmp_path, capsys):
    out, numbers = tmp_path / "scenes [x]", tmp_path / "numbers.json"
    options = ["--count", 6, "--split", "heldout", "--size", 64, "--first-seed", 5, "--questions-per-scene", 3]
    code, said, err = _run(capsys, "scenes", out, *options, "--depth", "--masks", "--json", numbers)
    assert code == 0 and "horizontal" in said
    assert "scenes [x]: 6 scenes, 18 questions; 6 scenes rendered in" in err
    found = json.loads(numbers.read_text())
    assert (found["scenes"], found["questions"], found["rendered"], found["split"]) == (6, 18, 6, "heldout")
    assert sum(found["kinds"].values()) == 18 and found["first_seed"] == 5
    lines = (out / "conversations.jsonl").read_text().splitlines()
    assert len(lines) == 18 and json.loads(lines[0])["image"] == "images/00000/heldout_0000000005.png"
    for folder in ("images", "depth", "masks"):
        assert len(list((out / folder).rglob("*.png"))) == 6
    with Image.open(out / "images/00000/heldout_0000000005.png") as picture:
        assert picture.size == (64, 64)
    assert "6 scenes, 18 questions; 0 scenes rendered" in _run(capsys, "scenes", out, *options, "--depth", "--masks")[2]


def test_scenes_stand_before_photographs(tmp_path, capsys):
    (tmp_path / "photos").mkdir()
    Image.fromarray(data.coffee()).save(tmp_path / "photos/coffee.png")
    code, _, _ = _run(capsys, "scenes", tmp_path / "out", "--count", 2, "--photographs", tmp_path / "photos")
    assert code == 0
    assert json.loads((tmp_path / "out/scenes.json").read_text())["photographs"] is not None


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--count", 0], "error: count: expected 1 to 4294967296, got 0"),
        (["--count", 2, "--size", 32], "error: size: expected 64 to 336, got 32"),
        (["--count", 2, "--split", "dev"], "error: split: expected one of train, validation, test, heldout, got 'dev'"),
        (["--count", 2, "--photographs", "nowhere"], "error: no such file or folder: nowhere"),
    ],
)
def test_a_wrong_option_is_one_line_and_nothing_is_written(tmp_path, capsys, words, said):
    code, _, err = _run(capsys, "scenes", tmp_path / "out", *words)
    assert code == 1 and err.endswith(said)
    assert not (tmp_path / "out").exists()


def test_scenes_without_a_count_is_wrong_usage(tmp_path, capsys):
    code, _, err = _run(capsys, "scenes", tmp_path / "out")
    assert code == 2 and "count" in err


def test_help_tells_the_commands_and_the_options(capsys):
    assert "photos" in _run(capsys, "--help")[1] and "scenes" in _run(capsys, "--help")[1]
    code, said, _ = _run(capsys, "scenes", "--help")
    assert code == 0 and "--questions-per-scene" in said and "16-bit PNG files in millimetres" in said
