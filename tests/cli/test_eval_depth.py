"""`vistok eval depth`."""

import json
from pathlib import Path

import pytest
from PIL import Image

from vistok.cli.main import main


def test_it_prints_and_writes_the_numbers_and_draws_the_maps(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = ["--json", str(tmp_path / "depth.json"), "--sheet", str(tmp_path / "maps.png")]
    assert main(["eval", "depth", "--scenes", "8", "--splits", '["test"]', *files]) == 0
    out = capsys.readouterr().out
    assert "AbsRel" in out and "of 128 codes used by 800 tokens" in out
    found = json.loads((tmp_path / "depth.json").read_text())
    assert found["codec"] == "depth_nano" and list(found["splits"]) == ["test"]
    assert 0 < found["splits"]["test"]["abs_rel"] < 0.1
    with Image.open(tmp_path / "maps.png") as sheet:
        assert sheet.width > 6 * 240 and sheet.height > 2 * 240


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--splits", '["train"]'], "expected splits among validation, test, heldout"),
        (["--scenes", "0"], "at least 1 scene"),
        (["depth"], "no pretrained weights"),
    ],
)
def test_what_cannot_be_measured_is_refused(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", "depth", *words]) == 1
    assert message in capsys.readouterr().err
