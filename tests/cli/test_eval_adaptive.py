"""`vistok eval adaptive` and `vistok eval complexity`: every number printed is in the JSON file."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import vistok
from vistok.cli._eval_adaptive import adaptive
from vistok.cli._eval_complexity import complexity


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("model")
    model: Any = vistok.tokenizer("karl_nano", **vistok.info("tokenizer", "karl_nano").tiny)
    model.save_pretrained(folder)
    return str(folder)


def test_complexity_tells_counts_by_kind_scores_and_calibration(checkpoint: str, tmp_path: Path, capsys: Any) -> None:
    complexity(
        "karl_nano", eps=[0.1, 0.03], count=3, checkpoint=checkpoint, plot=str(tmp_path / "kc.png"),
        calibrated=str(tmp_path / "model"), json=str(tmp_path / "kc.json"),
    )  # fmt: skip
    numbers = json.loads((tmp_path / "kc.json").read_text())
    assert set(numbers["kc"]) == set(numbers["structure"]) == {
        "photographs", "blurred", "gradients", "chessboard", "noise",
    }  # fmt: skip
    assert numbers["eps"] == [0.03, 0.1] and all(len(row) == 2 for row in numbers["kc"].values())
    assert [row["eps"] for row in numbers["calibration"]] == [0.03, 0.1]
    said = capsys.readouterr().out
    assert all(kind in said for kind in numbers["kc"]) and "3 squares of 16 px" in said
    assert (tmp_path / "kc.png").read_bytes().startswith(b"\x89PNG")
    saved: Any = vistok.tokenizer("karl_nano", checkpoint=tmp_path / "model")
    assert len(saved.calibration) == len(saved.epsilons)


def test_adaptive_tells_what_acceptance_asks(checkpoint: str, tmp_path: Path, capsys: Any) -> None:
    adaptive("karl_nano", eps=[0.05, 0.2], count=6, checkpoint=checkpoint, json=str(tmp_path / "a.json"))
    numbers = json.loads((tmp_path / "a.json").read_text())
    assert numbers["images"] == 6 and numbers["slots"] == 8 and len(numbers["falling"]["means"]) == 2
    assert [row["eps"] for row in numbers["rows"]] == [0.05, 0.2]
    assert all(row["verified"]["over"] == 0 for row in numbers["rows"])
    assert "pooled PSNR" in capsys.readouterr().out


def test_a_tokenizer_of_one_length_is_refused() -> None:
    with pytest.raises(ValueError, match="'vq_nano' has one length for all images"):
        complexity("vq_nano")
