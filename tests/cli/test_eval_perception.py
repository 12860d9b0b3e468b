"""`vistok eval perception`: what is printed is in the file; mistakes are named."""

import importlib.util
import json
from pathlib import Path

import pytest

from vistok.cli._eval_perception import perception
from vistok.lvlm import token_families


def save_untrained(folder, *family):
    path = Path(__file__).parents[1] / "lvlm" / "perception_fixtures.py"
    spec = importlib.util.spec_from_file_location("perception_fixtures", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.save_untrained(folder, *family)


def test_the_table_is_in_the_file(tmp_path, capsys):
    model = str(save_untrained(tmp_path / "model"))
    perception(model, model, questions=6, json=str(tmp_path / "table.json"))
    numbers = json.loads((tmp_path / "table.json").read_text())
    assert list(numbers["rows"]) == ["direct", "chain", "oracle", "random", "first_repeat", "constant", "program"]
    assert numbers["accuracy"] == numbers["rows"]["chain"]["accuracy"]
    assert numbers["rows"]["chain"]["against_chain"]["difference"] == 0 and numbers["settings"]["questions"] == 6
    assert 0.25 <= numbers["blind"] <= 0.5 and 0 <= numbers["codes"]["exact"] <= numbers["codes"]["within_one"] <= 1
    said = capsys.readouterr().out
    assert "its own: chain" in said and "first_repeat" in said and "6 questions about test scenes, by guessing" in said


def test_mistakes_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="expected aurora_micro or a folder with config.json, rows.safetensors"):
        perception(str(tmp_path))
    with pytest.raises(ValueError, match="--split: expected validation, test or heldout, got 'train'"):
        perception(split="train")
    with pytest.raises(ValueError, match="--questions: expected at least 1, got 0"):
        perception(questions=0)


def test_models_that_count_are_asked_how_many_and_compared_to_their_like_alone(tmp_path, capsys):
    counts = str(save_untrained(tmp_path / "counts", token_families.cells(12)))
    perception(counts, counts, questions=5, json=str(tmp_path / "table.json"))
    numbers = json.loads((tmp_path / "table.json").read_text())
    assert list(numbers["rows"]) == ["direct", "chain", "oracle", "random_places", "random_number", "program"]
    assert set(numbers["rows"]["chain"]["kinds"]) == {"count_color", "count_shape"} and numbers["blind"] == 0.4
    assert numbers["codes"]["true_by_program"] == 1
    assert "how many of a colour or a shape" in capsys.readouterr().out
    depths = str(save_untrained(tmp_path / "depths"))
    with pytest.raises(ValueError, match="--direct: expected a model of the same questions as"):
        perception(counts, depths, questions=1)
