"""Names and files become methods, in the order of a table."""

from pathlib import Path
from typing import Any

import pytest
import torch

import vistok
from vistok.lvlm.downsample import EvenlySpaced
from vistok.lvlm.pruning_methods import BASELINES, Method, find_method, find_methods
from vistok.pruning.todre import Todre


def write(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


def pruners(method: Method, candidate: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
    built = method.build(candidate)
    return built.pruners, built.identity


def test_the_baselines_come_first_and_once() -> None:
    assert [method.name for method in find_methods(["k_center", "random"])] == [*BASELINES, "k_center"]


def test_a_name_has_the_settings_of_its_preset() -> None:
    method = find_method("todre_v1")
    (built,), identity = pruners(method, {})
    assert isinstance(built, Todre) and built.diversity == "k_center" and method.candidates == ({},)
    assert identity["method"] == "todre" and identity["settings"]["diversity"] == "k_center"


def test_a_file_says_settings_and_what_to_try(tmp_path: Path) -> None:
    file = write(tmp_path / "mine.yaml", "base: todre\npivot: first\ntune:\n  tau: [0.1, 0.2]\n  stage2: [true, false]")
    method = find_method(file)
    assert method.name == "mine" and len(method.candidates) == 4
    assert method.candidates[1] == {"tau": 0.1, "stage2": False}
    (built,), identity = pruners(method, method.candidates[2])
    assert (built.pivot, built.tau) == ("first", 0.2) and identity["settings"]["tau"] == 0.2


def test_trained_methods_take_weights_from_their_file_and_refuse_to_run_without(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="explain_compressor: expected weights.*base: explain_compressor"):
        find_method("explain_compressor").build({})
    torch.manual_seed(0)
    net = vistok.pruner("explain_compressor", channels=(4,))
    net.save_pretrained(tmp_path / "net")  # type: ignore[attr-defined]
    file = write(tmp_path / "mine.yaml", f"base: explain_compressor\nweights: {tmp_path / 'net'}")
    (built,), identity = pruners(find_method(file), {})
    assert not built.training and len(identity["weights"]) == 64
    assert torch.equal(built.head.weight, net.head.weight)  # type: ignore[attr-defined]


def test_downsampling_is_a_method_by_name() -> None:
    (built,), identity = pruners(find_method("downsample"), {})
    assert isinstance(built, EvenlySpaced) and identity == {"method": "downsample"}


def test_another_pruner_may_come_first_and_leave_more(tmp_path: Path) -> None:
    text = (
        "base: transprune\ninput: {base: k_center, factor: 2, metric: l2}\ntune:\n  input: [{factor: 2}, {factor: 8}]"
    )
    method = find_method(write(tmp_path / "both.yaml", text))
    built = method.build({})
    assert [type(each).__name__ for each in built.pruners] == ["KCenter", "TransPrune"]
    assert built.pruners[0].metric == "l2" and built.identity["input"]["settings"]["metric"] == "l2"
    assert built.budgets(0.25) == [0.5, 0.5]
    wide = method.build(method.candidates[1])
    assert wide.budgets(0.25) == [1.0, 0.25] and wide.pruners[0].metric == "l2"
    assert wide.identity != built.identity


@pytest.mark.parametrize(
    ("given", "message"),
    [("k_center", "with base, a name"), ("{base: pool}", "factor >= 1"), ("{base: transprune, factor: 2}", "input")],
)
def test_what_cannot_come_first_is_refused(tmp_path: Path, given: str, message: str) -> None:
    method = find_method(write(tmp_path / "both.yaml", f"base: todre\ninput: {given}"))
    with pytest.raises(ValueError, match=f"both: expected .*{message}"):
        method.build({})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tau: 0.1", "expected `base:` with the name of a pruner"),
        ("base: todre\ntune: [0.1]", "`tune:` to map settings to lists"),
        ("base: todre\ntune:\n  tau: 0.1", "`tune:` to map settings to lists"),
    ],
)
def test_files_that_say_too_little_are_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        find_method(write(tmp_path / "mine.yaml", text))


def test_names_that_are_none_are_refused_with_those_that_are_close(tmp_path: Path) -> None:
    with pytest.raises(KeyError, match="todre"):
        find_method("todra")
    with pytest.raises(FileNotFoundError, match=r"no such file: .*none\.yaml"):
        find_method(str(tmp_path / "none.yaml"))
    with pytest.raises(TypeError, match="no pruner 'todre'.* setting 'tua'"):
        find_method(write(tmp_path / "mine.yaml", "base: todre\ntua: 0.1")).build({})


def test_two_rows_of_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="names that differ, got pool twice"):
        find_methods([write(tmp_path / "pool.yaml", "base: pool")])
