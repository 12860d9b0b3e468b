"""`vistok eval retrieval`: what is printed is in the JSON file; training scenes are refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import vistok
from vistok.cli._eval_retrieval import retrieval


def test_recall_of_every_split_and_the_codebook_are_told(tmp_path: Path, capsys: Any) -> None:
    torch.manual_seed(0)
    model: Any = vistok.tokenizer("seed_nano", **vistok.info("tokenizer", "seed_nano").tiny)
    model.save_pretrained(tmp_path / "model")
    retrieval(scenes=4, checkpoint=str(tmp_path / "model"), json=str(tmp_path / "r.json"))
    numbers = json.loads((tmp_path / "r.json").read_text())
    assert set(numbers["splits"]) == {"test", "heldout"}
    for found in numbers["splits"].values():
        assert found["scenes"] == 4 and found["ceiling"] == 1 and found["codebook"]["tokens"] == 16
        assert set(found["codes"]["image_to_text"]) == {"1", "5", "10"} and found["codes"]["image_to_text"]["5"] == 1
    said = capsys.readouterr().out
    assert "of 4,096 codes used by 16 tokens" in said and said.count("│ embeddings") == said.count("│ codes") == 2


def test_scenes_that_were_learned_from_are_refused() -> None:
    with pytest.raises(ValueError, match="expected splits among validation, test, heldout, got 'train'"):
        retrieval(splits=["train"])
    with pytest.raises(ValueError, match="at least 1 scene, got 0"):
        retrieval(scenes=0)
