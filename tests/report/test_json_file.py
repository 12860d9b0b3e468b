import json

import pytest

from vistok.report.json_file import read_json_text, write_json


def test_values_come_back_and_folders_are_made(tmp_path):
    write_json(tmp_path / "new" / "file.json", {"psnr": 23.5, "none": None})
    assert json.loads((tmp_path / "new" / "file.json").read_text()) == {"psnr": 23.5, "none": None}


def test_what_json_cannot_say_leaves_the_old_file_as_it_was(tmp_path):
    write_json(tmp_path / "file.json", [1])
    with pytest.raises(ValueError):
        write_json(tmp_path / "file.json", [float("nan")])
    assert [path.name for path in tmp_path.iterdir()] == ["file.json"]
    assert json.loads((tmp_path / "file.json").read_text()) == [1]


def test_whole_numbers_that_are_no_float_are_infinite_and_endless_nesting_is_refused():
    assert read_json_text('{"a": 12, "b": -' + "9" * 5000 + "}") == {"a": 12, "b": float("-inf")}
    with pytest.raises(ValueError, match="nested too deep"):
        read_json_text("[" * 100_000)
