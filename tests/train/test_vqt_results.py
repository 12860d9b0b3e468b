from dataclasses import replace
from pathlib import Path

import pytest
import torch

from vistok.train.vqt_results import Facts, Result, read_results, result_file, write_result

FACTS = Facts("color", 0, 6, 96, None, [1, 2], 0.1, 0.01, 0.75, 0.8, 1.5)


def test_results_come_back_as_they_were_written(tmp_path: Path) -> None:
    right = torch.tensor([[True, False, True], [True, True, True]])
    probe = Result(FACTS, right)
    vqt = Result(replace(FACTS, tokens=10, kept_features=3, solved=None), ~right, right, ~right)
    write_result(tmp_path, vqt)
    write_result(tmp_path, probe)
    assert sorted(path.name for path in (tmp_path / "results").iterdir()) == [
        "color.linear.safetensors",
        "color.vqt_t10.safetensors",
    ]
    first, second = read_results(tmp_path)
    assert (first.facts, second.facts) == (probe.facts, vqt.facts)
    assert (
        torch.equal(first.right, right)
        and first.refit_right is None
        and first.kept_right is None
        and first.accuracy == pytest.approx(5 / 6)
    )
    assert torch.equal(second.right, ~right) and torch.equal(second.refit_right, right)  # type: ignore[arg-type]
    assert torch.equal(second.kept_right, ~right)  # type: ignore[arg-type]
    assert (first.facts.readout, second.facts.readout) == ("linear", "vqt_t10")
    assert result_file(tmp_path, "color", 10).is_file()


def test_a_folder_without_results_is_an_error_that_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="vistok train vqt"):
        read_results(tmp_path)
