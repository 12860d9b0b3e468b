import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import vistok
from vistok import registry
from vistok.registry import create, names, register


@pytest.fixture(autouse=True)
def clean() -> Iterator[None]:
    """Forget what a test registers, and look for plugins anew."""
    before = set(registry._methods)
    yield
    for added in registry._methods.keys() - before:
        # A method file registers itself once, when it is imported; forgetting it would lose it for good.
        if not registry._in_package(*added):
            del registry._methods[added]
    registry._load_plugins.cache_clear()


def tiny(name: str) -> dict[str, Any]:
    return vistok.info("tokenizer", name).tiny


def own() -> Any:
    class Own:
        def __init__(self, *, strength: int = 1) -> None:
            self.strength = strength

    return Own


def test_a_name_builds_its_method_with_the_settings_of_the_preset_and_overrides() -> None:
    assert vistok.quantizer("fsq").levels == (8, 8, 8, 5, 5, 5)
    assert vistok.quantizer("fsq", levels=[4, 4]).levels == (4, 4)


def test_names_match_a_shell_pattern_and_may_be_those_with_weights() -> None:
    assert vistok.list_tokenizers("vq_n*") == ["vq_nano"]
    assert vistok.list_tokenizers("nothing*") == []
    assert {"kl_nano", "vq_nano"} <= set(vistok.list_tokenizers(pretrained=True))
    assert names("quantizer", pretrained=True) == []


def test_unknown_names_raise_with_close_ones() -> None:
    with pytest.raises(KeyError, match="no tokenizer 'vq_nan'; did you mean vq_nano"):
        vistok.tokenizer("vq_nan")
    with pytest.raises(KeyError, match="no pruner 'unifrm'; did you mean uniform"):
        vistok.info("pruner", "unifrm")
    with pytest.raises(KeyError, match="no quantizer method 'fsk'; did you mean fsq"):
        registry.method("quantizer", "fsk")


def test_unknown_settings_raise_with_close_ones() -> None:
    with pytest.raises(
        TypeError, match=r"tokenizer 'vq_nano' \(method autoencoder\) setting 'widht'; did you mean width"
    ):
        vistok.tokenizer("vq_nano", widht=3)


def test_pretrained_needs_weights() -> None:
    with pytest.raises(ValueError, match="quantizer 'fsq' has no pretrained weights"):
        vistok.quantizer("fsq", pretrained=True)


def test_settings_saved_with_weights_win_over_the_preset_and_overrides_over_both(tmp_path: Path) -> None:
    small = vistok.tokenizer("vq_nano", **tiny("vq_nano"))
    small.save_pretrained(tmp_path / "small")
    loaded = vistok.tokenizer("vq_nano", checkpoint=tmp_path / "small")
    assert (loaded.patch, loaded.name) == (4, "vq_nano")
    torch.testing.assert_close(loaded.state_dict(), small.state_dict(), rtol=0, atol=0)
    with pytest.raises(ValueError, match="does not fit Autoencoder"):
        vistok.tokenizer("vq_nano", checkpoint=tmp_path / "small", width=24)


def test_dtype_converts_what_was_built(tmp_path: Path) -> None:
    model: Any = vistok.tokenizer("kl_nano", dtype=torch.bfloat16, **tiny("kl_nano"))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


def test_users_register_under_kind_and_name() -> None:
    cls = register("pruner/own")(own())
    assert "own" in vistok.list_pruners() and vistok.info("pruner", "own").method == "own"
    built: Any = vistok.pruner("own", strength=4)
    assert isinstance(built, cls) and built.strength == 4


def test_registering_twice_is_fine_for_the_same_object_and_an_error_for_another() -> None:
    register("pruner/own")(own())
    again = register("pruner/own")(own())  # as reloading a file in a notebook does
    assert isinstance(vistok.pruner("own"), again)

    class Other: ...

    with pytest.raises(ValueError, match="'pruner/own' is taken by .*Own"):
        register("pruner/own")(Other)


@pytest.mark.parametrize("name", ["own", "pruners/own", "pruner/", ""])
def test_registering_needs_a_kind_and_a_name(name: str) -> None:
    with pytest.raises(ValueError, match="expected 'kind/name'"):
        register(name)


def test_bare_register_works_in_method_folders_only() -> None:
    with pytest.raises(ValueError, match=r"use @register\('pruner/name'\)"):
        register(own())


def plugin(folder: Path, monkeypatch: pytest.MonkeyPatch, body: str) -> None:
    """Install a distribution with one entry point, as pip would lay it down."""
    (folder / "plug-1.0.dist-info").mkdir()
    (folder / "plug-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: plug\nVersion: 1.0\n")
    (folder / "plug-1.0.dist-info" / "entry_points.txt").write_text("[vistok.plugins]\nplug = plug_module:add\n")
    (folder / "plug_module.py").write_text(body)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, "plug_module", raising=False)
    monkeypatch.delenv("VISTOK_NO_PLUGINS", raising=False)
    registry._load_plugins.cache_clear()


GOOD = "from vistok import register\nclass Plugged: ...\ndef add():\n    register('pruner/plugged')(Plugged)\n"


def test_a_plugin_registers_its_methods(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plugin(tmp_path, monkeypatch, GOOD)
    assert "plugged" in vistok.list_pruners()
    assert type(vistok.pruner("plugged")).__name__ == "Plugged"


def test_a_broken_plugin_warns_and_stops_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plugin(tmp_path, monkeypatch, "raise RuntimeError('no luck')\n")
    with pytest.warns(UserWarning, match=r"vistok plugin plug .*no luck"):
        assert "uniform" in vistok.list_pruners()


def test_plugins_can_be_switched_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plugin(tmp_path, monkeypatch, GOOD)
    monkeypatch.setenv("VISTOK_NO_PLUGINS", "1")
    assert "plugged" not in vistok.list_pruners()


def test_create_takes_a_function_as_a_method(tmp_path: Path) -> None:
    @register("readout/mean")
    def mean(*, scale: float = 1.0) -> Any:
        def read(features: list[Tensor], tokens: Any = None) -> Tensor:
            return scale * torch.stack(list(features)).mean((0, 2))

        return read

    read = create("readout", "mean", scale=2.0)
    assert read([torch.ones(1, 3, 4)]).tolist() == [[2.0] * 4]
    assert not isinstance(read, nn.Module)
