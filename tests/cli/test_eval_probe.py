"""`vistok eval probe`: a row for each attribute and stage, the same numbers in the JSON file."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import vistok
from vistok.cli._eval_probe import probe
from vistok.data.scenes.render import render
from vistok.data.scenes.splits import seeds_of
from vistok.metrics.reconstruction import psnr


def test_every_attribute_has_a_row_and_the_numbers_are_in_the_json_file(tmp_path: Path, capsys: Any) -> None:
    torch.manual_seed(0)
    model: Any = vistok.tokenizer("mingtok_nano", **vistok.info("tokenizer", "mingtok_nano").tiny)
    model.save_pretrained(tmp_path / "model")
    probe(scenes=6, side=64, checkpoint=str(tmp_path / "model"), json=str(tmp_path / "p.json"))
    numbers = json.loads((tmp_path / "p.json").read_text())
    assert [row["level"] for row in numbers["rows"]] == ["patch"] * 3 + ["image"] * 4
    said = capsys.readouterr().out
    for row in [*numbers["rows"], *numbers["mean"].values()]:
        cells = [f"{100 * share:.1f}" for share in (row["chance"], *row["accuracy"].values())]
        assert any(all(text in line for text in (row["attribute"], *cells)) for line in said.splitlines())
    scenes = [render(seed, 64).image for seed in seeds_of("test")[:6]]
    images = torch.from_numpy(np.stack(scenes)).permute(0, 3, 1, 2) / 255
    with torch.no_grad():
        expected = psnr(model.eval().decode(model.encode(images)), images)
    assert numbers["psnr"] == pytest.approx(float(expected), abs=1e-3)
    assert f"{numbers['psnr']:.2f} dB" in said and numbers["scenes"] == 6 and numbers["side"] == 64


def test_no_scenes_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 1 scene, got 0"):
        probe(scenes=0)
