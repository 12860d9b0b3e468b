import json

import pytest
from PIL import Image
from safetensors.torch import save_file

from vistok.cli.main import main
from vistok.codecs.watermark import SurvivalNet
from vistok.data.scenes.render import render


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "pictures"
    root.mkdir()
    Image.fromarray(render(5, 64).image).save(root / "a.png")
    return root


def test_it_prints_and_writes_what_a_mark_survives(folder, tmp_path, capsys):
    numbers = tmp_path / "numbers.json"
    arguments = ["eval", "watermark", "--images", str(folder), "--crop", "32", "--tokens", "16", "--keys", "2"]
    assert not main([*arguments, "--message", "01", "--clusters", "8", "--json", str(numbers)])
    found = json.loads(numbers.read_text())
    [row] = found["results"]
    assert (row["marking"], row["count"], row["threshold"], row["trials"]) == ("key", 16, 15, 2)
    assert set(row["survival"]) == {"re-encoded", "jpeg 90", "jpeg 75", "jpeg 50"}
    assert "0 of 2 taken for marked, at most 0.002 expected" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["--message", "x"], "a message of digits"),
        (["--crop", "0"], "at least 1 pixel"),
        (["--crop", "99"], "smaller --crop"),
    ],
)
def test_mistakes_are_told(folder, capsys, more, told):
    assert main(["eval", "watermark", "--images", str(folder), *more]) == 1
    assert told in " ".join(capsys.readouterr().err.split())


def test_a_net_that_learned_on_other_codes_is_told(folder, tmp_path, capsys):
    net = SurvivalNet(4, 2)
    told = {"dim": "4", "width": "2", "tokenizer": "other_nano"}
    save_file(net.state_dict(), tmp_path / "survival.safetensors", told)
    assert main(["eval", "watermark", "--images", str(folder), "--crop", "64", "--places", str(tmp_path)]) == 1
    said = " ".join(capsys.readouterr().err.split())
    assert "expected a net for codes of 6 numbers" in said and "got one for 4" in said
