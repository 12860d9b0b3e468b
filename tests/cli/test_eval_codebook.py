"""`vistok eval codebook`: rows for codes and k-means with the JSON file's numbers; pictures without labels."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vistok.cli._eval_codebook import codebook
from vistok.data.scenes.render import render


def test_scenes_have_a_row_for_codes_and_one_for_k_means(tmp_path: Path, capsys: Any) -> None:
    codebook("ett_nano", scenes=8, merged=4, draws=2, json=str(tmp_path / "c.json"))
    numbers = json.loads((tmp_path / "c.json").read_text())
    said = capsys.readouterr().out
    assert list(numbers["rows"]) == ["joint", "merged"] and numbers["scenes"] == 8 and numbers["unit"] == "patch"
    for name, row in numbers["rows"].items():
        for own in (row["codes"], row["k_means"]):
            cells = [name, f"{own['complexity']:.3f}", f"{own['distortion']:.2%}"]
            assert any(all(cell in line for cell in cells) for line in said.splitlines()), cells
            assert set(own["labels"]) == {"color", "shape", "texture"}
            assert own["objective"] == pytest.approx(own["complexity"] + own["distortion"])


def test_pictures_have_rate_and_distortion_only(tmp_path: Path, capsys: Any) -> None:
    Image.fromarray(np.asarray(render(1, 96).image)).save(tmp_path / "scene.png")
    codebook("ett_nano", images=str(tmp_path), crop=96, json=str(tmp_path / "c.json"))
    numbers = json.loads((tmp_path / "c.json").read_text())
    assert numbers["rows"]["joint"]["codes"]["items"] == 64 and not numbers["rows"]["joint"]["codes"]["labels"]
    assert "H(label)" not in capsys.readouterr().out


def test_what_cannot_be_measured_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="tokens are continuous"):
        codebook("kl_nano", scenes=1)
    with pytest.raises(ValueError, match="--scenes, --draws and --merged >= 1"):
        codebook("vq_nano", scenes=0)
    Image.new("RGB", (32, 32)).save(tmp_path / "small.png")
    with pytest.raises(ValueError, match="small.png.*choose a smaller --crop"):
        codebook("vq_nano", images=str(tmp_path))
    with pytest.raises(ValueError, match="small.png.*seed_nano takes no smaller side"):
        codebook("seed_nano", images=str(tmp_path))
    (tmp_path / "small.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match="small.png") as refused:
        codebook("vq_nano", images=str(tmp_path))
    assert "--crop" not in str(refused.value)
