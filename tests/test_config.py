from pathlib import Path
from typing import Any

import pytest
import torch

from vistok import config
from vistok.config import (
    Config,
    check_settings,
    config_names,
    deep_merge,
    load_config,
    merge_base,
    parse_yaml,
    unknown,
)
from vistok.registry import FOLDERS, create, method

PRESETS = [(kind, name) for kind, folder in FOLDERS.items() for name in config_names(folder)]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of presets of our own, in place of configs/pruning."""
    monkeypatch.setattr(config, "config_dir", lambda name: tmp_path / name)
    (tmp_path / "pruning").mkdir()
    return tmp_path / "pruning"


@pytest.mark.parametrize(("kind", "name"), PRESETS)
def test_every_preset_says_what_it_is_and_builds_as_it_is_and_tiny(kind: str, name: str) -> None:
    preset = load_config(FOLDERS[kind], name)
    assert preset.summary and "\n" not in preset.summary
    check_settings(name, method(kind, preset.method), {**preset.settings, **preset.tiny})
    # A readout reads a backbone of the caller's, which no preset brings along.
    backbone = {"vit": {"architecture": "vit_tiny_patch16_224"}} if kind == "readout" else {}
    with torch.device("meta"):
        create(kind, name, **backbone)
        create(kind, name, **preset.tiny)


def test_a_preset_is_method_settings_and_words_with_a_meaning_of_their_own(folder: Path) -> None:
    (folder / "a.yaml").write_text("method: m\nsummary: s\nweights: embedded:w\nwidth: 3\ntiny: {width: 1}\n")
    assert load_config("pruning", "a") == Config("pruning", "a", "m", {"width": 3}, {"width": 1}, "embedded:w", "s")


def test_base_is_merged_under_the_child(folder: Path) -> None:
    (folder / "grand.yaml").write_text(
        "method: m\nwidth: 1\ndepth: 1\nweights: embedded:w\ntiny: {width: 1, depth: 1}\n"
    )
    (folder / "parent.yaml").write_text("base: grand\ndepth: 2\ntiny: {depth: 2}\n")
    (folder / "child.yaml").write_text("base: parent\nwidth: 3\n")
    child = load_config("pruning", "child")
    assert (child.method, child.settings) == ("m", {"width": 3, "depth": 2})
    assert child.tiny == {"width": 1, "depth": 2}
    assert child.weights == "embedded:w"


@pytest.mark.parametrize("text", ["width: 3", "method: 4", "- a\n- b", "", "text"])
def test_a_malformed_preset_is_named(folder: Path, text: str) -> None:
    (folder / "bad.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"configs/pruning/bad\.yaml: expected"):
        load_config("pruning", "bad")


def test_an_unknown_preset_names_the_close_ones(folder: Path) -> None:
    (folder / "uniform.yaml").write_text("method: uniform")
    with pytest.raises(KeyError, match="no configs/pruning name 'unifrom'; did you mean uniform?"):
        load_config("pruning", "unifrom")


def test_names_are_sorted_and_only_those_of_yaml_files(folder: Path) -> None:
    for name in ("b.yaml", "a.yaml", "README.md"):
        (folder / name).write_text("method: m")
    assert config_names("pruning") == ["a", "b"]
    assert config_names("no_such_folder") == []


@pytest.mark.parametrize(
    ("under", "over", "merged"),
    [
        ({"a": 1, "b": 2}, {"b": 3, "c": 4}, {"a": 1, "b": 3, "c": 4}),
        (
            {"q": {"method": "vq", "n": 1, "d": 2}},
            {"q": {"method": "vq", "n": 5}},
            {"q": {"method": "vq", "n": 5, "d": 2}},
        ),
        ({"q": {"method": "vq", "n": 1}}, {"q": {"method": "fsq"}}, {"q": {"method": "fsq"}}),
        ({"q": {"x": {"y": 1, "z": 2}}}, {"q": {"x": {"y": 3}}}, {"q": {"x": {"y": 3, "z": 2}}}),
        ({"q": [1, 2]}, {"q": [3]}, {"q": [3]}),
        ({"q": {"n": 1}}, {"q": None}, {"q": None}),
    ],
)
def test_deep_merge(under: dict[str, Any], over: dict[str, Any], merged: dict[str, Any]) -> None:
    before = repr(under)
    assert deep_merge(under, over) == merged
    assert repr(under) == before


def test_a_setting_that_does_not_exist_is_refused_with_the_close_one() -> None:
    def build(*, width: int, depth: int) -> None: ...

    def build_any(**settings: Any) -> None: ...

    check_settings("x", build, ["width", "depth"])
    check_settings("x", build_any, ["anything"])
    with pytest.raises(TypeError, match="no x setting 'widht'; did you mean width?"):
        check_settings("x", build, ["widht"])


def test_unknown_lists_everything_when_nothing_is_close() -> None:
    assert unknown("verb", "xyz", ["encode", "decode"]) == "no verb 'xyz'; there are: encode, decode"


def test_presets_that_are_each_others_base_are_an_error_that_shows_the_circle() -> None:
    presets: dict[str, dict[str, Any]] = {"a": {"base": "b"}, "b": {"base": "a"}}
    with pytest.raises(ValueError, match="b -> a -> b"):
        merge_base(presets["a"], presets.__getitem__)


def test_broken_yaml_is_an_error_that_names_the_file() -> None:
    with pytest.raises(ValueError, match=r"mine\.yaml: expected YAML"):
        parse_yaml("a: [1, 2", "mine.yaml")
