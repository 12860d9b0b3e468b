from pathlib import Path

import pytest
import torch

from vistok.train import checkpoint
from vistok.train.checkpoint import read_state, write_state


def test_a_state_comes_back_as_it_was_and_none_is_none(tmp_path: Path) -> None:
    assert read_state(tmp_path) is None
    write_state(tmp_path, {"step": 3, "model": {"weight": torch.arange(4.0)}})
    write_state(tmp_path, {"step": 4, "model": {"weight": torch.arange(5.0)}})
    state = read_state(tmp_path)
    assert state is not None and state["step"] == 4 and torch.equal(state["model"]["weight"], torch.arange(5.0))
    assert [path.name for path in tmp_path.iterdir()] == ["last.pt"]


def test_a_write_that_fails_leaves_the_state_before_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_state(tmp_path, {"step": 3})

    def fail(state: object, path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(checkpoint.torch, "save", fail)
    with pytest.raises(OSError, match="no space"):
        write_state(tmp_path, {"step": 4})
    monkeypatch.undo()
    state = read_state(tmp_path)
    assert state is not None and state["step"] == 3
