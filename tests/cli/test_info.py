import json
from pathlib import Path

import pytest

import vistok
from vistok.cli.main import main
from vistok.weights import weight_file


def test_a_method_without_weights(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["info", "fsq", "--json", str(tmp_path / "facts.json")]) == 0
    assert "finite scalar quantization" in capsys.readouterr().out
    facts = json.loads((tmp_path / "facts.json").read_text())["quantizer"]
    assert facts["settings"] == {"levels": [8, 8, 8, 5, 5, 5]}
    assert (facts["parameters"], facts["weights"]) == (0, "none")


def test_embedded_weights_are_described_down_to_the_licence(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["info", "vq_nano", "--json", str(tmp_path / "facts.json")]) == 0
    assert "model card" in capsys.readouterr().out
    facts = json.loads((tmp_path / "facts.json").read_text())["tokenizer"]
    model = vistok.tokenizer("vq_nano", pretrained=True)
    assert facts["parameters"] == sum(parameter.numel() for parameter in model.parameters())  # type: ignore[attr-defined]
    assert facts["bytes"] == weight_file("embedded:vq_nano").stat().st_size
    assert facts["stored as"] == "F16"
    assert Path(facts["model card"]).is_file() and facts["licence"] != "not stated"


def test_an_unknown_name_shows_close_ones_of_every_kind(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "fsk"]) == 1
    assert "error: no name 'fsk'; did you mean fsq" in capsys.readouterr().err
    assert main(["info", "uniform", "--kind", "quantizer"]) == 1
    assert "error: no quantizer 'uniform'" in capsys.readouterr().err
