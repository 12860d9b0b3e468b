import warnings
from pathlib import Path
from sys import modules
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from vistok.weights import (
    fingerprint,
    load_weights,
    locate,
    read_checkpoint,
    read_tensors,
    stored_settings,
    weight_file,
)


@pytest.fixture
def tensors(generator: torch.Generator) -> dict[str, Tensor]:
    return {"weight": torch.randn(3, 2, generator=generator), "bias": torch.randn(3, generator=generator)}


def write(path: Path, tensors: dict[str, Tensor]) -> Path:
    if path.suffix == ".safetensors":
        save_file(tensors, path)
    elif path.suffix == ".npz":
        np.savez(path, **{name: value.numpy() for name, value in tensors.items()})
    else:
        torch.save(tensors, path)
    return path


class Malicious:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".pth", ".ckpt", ".bin", ".npz"])
def test_every_format_loads_the_same_weights(tmp_path: Path, tensors: dict[str, Tensor], suffix: str) -> None:
    path = write(tmp_path / f"w{suffix}", tensors)
    model = nn.Linear(2, 3)
    load_weights(model, path)
    torch.testing.assert_close(dict(model.state_dict()), tensors, rtol=0, atol=0)


@pytest.mark.parametrize("key", ["ema", "model", "state_dict"])
def test_a_training_checkpoint_is_entered(tmp_path: Path, tensors: dict[str, Tensor], key: str) -> None:
    torch.save({key: tensors, "step": 7}, tmp_path / "last.pt")
    assert read_tensors(tmp_path / "last.pt").keys() == tensors.keys()


def test_nested_mappings_that_a_model_names_are_entered_first(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    class Nested(nn.Linear):
        weights_under = ("trainer", "net")

    torch.save({"args": {"width": 3}, "trainer": {"net": tensors, "other": {}}}, tmp_path / "last.pt")
    with pytest.raises(ValueError, match="expected a mapping of tensors, found none"):
        read_tensors(tmp_path / "last.pt")
    for saved in (torch.load(tmp_path / "last.pt", weights_only=True), {"model": tensors}, tensors):
        torch.save(saved, tmp_path / "last.pt")
        model = Nested(2, 3)
        load_weights(model, tmp_path / "last.pt")
        torch.testing.assert_close(dict(model.state_dict()), tensors, rtol=0, atol=0)


def test_scripts_are_read_with_trust_only_and_safetensors_beside_them_first(
    tmp_path: Path, tensors: dict[str, Tensor]
) -> None:
    model = nn.Linear(2, 3)
    model.load_state_dict(tensors)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        torch.jit.save(torch.jit.script(model), tmp_path / "encoder.jit")
    for checkpoint in (tmp_path, tmp_path / "encoder.jit"):
        with pytest.raises(ValueError, match="encoder.jit are TorchScript, which holds programs"):
            read_checkpoint(checkpoint)
        torch.testing.assert_close(read_checkpoint(checkpoint, trust=True)[1], tensors, rtol=0, atol=0)
    named = write(tmp_path / "model.safetensors", tensors)
    assert read_checkpoint(tmp_path)[0] == named


def test_half_precision_on_disk_becomes_the_precision_of_the_model(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    path = write(tmp_path / "w.safetensors", {name: value.half() for name, value in tensors.items()})
    model = nn.Linear(2, 3)
    load_weights(model, path)
    assert model.weight.dtype == torch.float32
    torch.testing.assert_close(model.weight.data, tensors["weight"].half().float(), rtol=0, atol=0)


@pytest.mark.parametrize("suffix", [".pt", ".npz"])
def test_code_in_a_file_is_never_run(tmp_path: Path, suffix: str) -> None:
    trap, path = tmp_path / "ran", tmp_path / f"w{suffix}"
    if suffix == ".npz":
        np.savez(path, weight=np.array([Malicious(trap)], dtype=object))
    else:
        torch.save({"weight": Malicious(trap)}, path)
    with pytest.raises(ValueError, match="plain tensors"):
        read_tensors(path)
    assert not trap.exists()


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".npz"])
def test_a_damaged_file_is_an_error_that_names_it(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"w{suffix}"
    path.write_bytes(b"PK\x03\x04 neither one nor the other")
    with pytest.raises(ValueError, match=rf"w\{suffix}: expected a whole file"):
        read_tensors(path)


def test_what_does_not_fit_is_named(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    path = write(tmp_path / "w.safetensors", {"weight": tensors["weight"].T.contiguous(), "extra": tensors["bias"]})
    with pytest.raises(ValueError) as raised:
        load_weights(nn.Linear(2, 3), path)
    for part in ("missing bias [3]", "unexpected extra [3]", "weight: expected [3, 2], got [2, 3]", str(path)):
        assert part in str(raised.value)


def test_a_refused_file_leaves_the_model_as_it_was(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    model = nn.Linear(2, 3)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ValueError):
        load_weights(model, write(tmp_path / "w.safetensors", {"weight": tensors["weight"]}))
    torch.testing.assert_close(dict(model.state_dict()), before, rtol=0, atol=0)


def test_a_model_may_rename_the_keys_of_foreign_files(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    class Renaming(nn.Linear):
        def rename_keys(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
            return {name.removeprefix("head."): value for name, value in tensors.items()}

    model = Renaming(2, 3)
    load_weights(model, write(tmp_path / "w.pt", {f"head.{name}": value for name, value in tensors.items()}))
    torch.testing.assert_close(dict(model.state_dict()), tensors, rtol=0, atol=0)


def test_a_folder_stands_for_its_weight_file(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    other = write(tmp_path / "other.pt", tensors)
    assert weight_file(tmp_path) == other
    named = write(tmp_path / "model.safetensors", tensors)
    assert weight_file(tmp_path) == named
    assert weight_file(other) == other


def test_of_several_weight_files_the_one_that_libraries_write_by_default_is_read(
    tmp_path: Path, tensors: dict[str, Tensor]
) -> None:
    write(tmp_path / "diffusion_pytorch_model.fp16.safetensors", tensors)
    named = write(tmp_path / "diffusion_pytorch_model.safetensors", tensors)
    assert weight_file(tmp_path) == named


def test_a_folder_with_no_or_several_weight_files_is_refused(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    with pytest.raises(ValueError, match="expected model.safetensors or one weight file, got"):
        weight_file(tmp_path)
    write(tmp_path / "a.pt", tensors)
    write(tmp_path / "b.pt", tensors)
    with pytest.raises(ValueError, match=r"got \['a.pt', 'b.pt'\]"):
        weight_file(tmp_path)


def test_files_without_tensors_and_unknown_suffixes_are_refused(tmp_path: Path) -> None:
    torch.save({"step": 3}, tmp_path / "w.pt")
    with pytest.raises(ValueError, match="expected a mapping of tensors, found none"):
        read_tensors(tmp_path / "w.pt")
    for value, kind in (([torch.zeros(2)], "list"), (torch.zeros(2), "Tensor")):
        torch.save(value, tmp_path / "bare.pt")
        with pytest.raises(ValueError, match=rf"bare.pt: expected a mapping of tensors, found a {kind}"):
            read_tensors(tmp_path / "bare.pt")
    with pytest.raises(ValueError, match=r"expected one of .*safetensors.*, got \.txt"):
        read_tensors(tmp_path / "w.txt")


def test_a_checkpoint_that_is_nowhere_is_named() -> None:
    with pytest.raises(FileNotFoundError, match="no checkpoint 'nowhere.pt'"):
        locate("nowhere.pt")
    with pytest.raises(FileNotFoundError, match="no embedded weights 'nothing'"):
        locate("embedded:nothing")


def test_a_method_may_prefer_other_files_for_weights_and_settings(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    class Foreign(nn.Linear):
        weight_files = ("theirs.safetensors", "theirs.bin")

        config_files = ("theirs.json", "config.json")

    write(tmp_path / "model.safetensors", {"other": torch.zeros(1)})
    write(tmp_path / "theirs.safetensors", tensors)
    model = Foreign(2, 3)
    load_weights(model, tmp_path)
    torch.testing.assert_close(dict(model.state_dict()), tensors, rtol=0, atol=0)
    (tmp_path / "config.json").write_text('{"width": 3}')
    assert stored_settings(tmp_path, Foreign) == stored_settings(tmp_path) == {"width": 3}
    (tmp_path / "theirs.json").write_text('{"width": 4}')
    assert stored_settings(tmp_path, Foreign) == {"width": 4} and stored_settings(tmp_path) == {"width": 3}


def test_a_folder_of_a_repository_on_the_hub_is_a_checkpoint(
    tmp_path: Path, tensors: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    # What huggingface_hub leaves behind after a download, which is all that it looks at when it is offline.
    root = tmp_path / "models--someone--pipeline"
    snapshot = root / "snapshots" / ("0" * 40)
    (snapshot / "vae").mkdir(parents=True)
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text("0" * 40)
    write(snapshot / "vae" / "theirs.safetensors", tensors)
    (snapshot / "vae" / "config.json").write_text('{"width": 3}')
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert locate("hf:someone/pipeline/vae") == snapshot / "vae"
    assert weight_file("hf:someone/pipeline/vae@main") == snapshot / "vae" / "theirs.safetensors"
    assert stored_settings("hf:someone/pipeline/vae") == {"width": 3}
    with pytest.raises(FileNotFoundError, match="hf:someone/pipeline: expected weights"):
        locate("hf:someone/pipeline")


def test_one_file_of_a_repository_on_the_hub_is_a_checkpoint(
    tmp_path: Path, tensors: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "models--someone--several"
    snapshot = root / "snapshots" / ("0" * 40)
    (snapshot / "more").mkdir(parents=True)
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text("0" * 40)
    for file in ("a.pt", "b.pt", "more/c.safetensors"):
        write(snapshot / file, tensors)
    (snapshot / "more" / "config.json").write_text('{"width": 3}')
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert weight_file("hf:someone/several/b.pt") == snapshot / "b.pt"
    assert locate("hf:someone/several/more/c.safetensors@main") == snapshot / "more" / "c.safetensors"
    assert stored_settings("hf:someone/several/more/c.safetensors") == {"width": 3}
    with pytest.raises(FileNotFoundError, match="hf:someone/several/d.pt: no such file in the repository"):
        locate("hf:someone/several/d.pt")
    with pytest.raises(ValueError, match=r"got \['a.pt', 'b.pt'\]; name the file, .* hf:owner/name/FILE"):
        weight_file("hf:someone/several")


def test_settings_are_read_beside_the_weights(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    path = write(tmp_path / "model.safetensors", tensors)
    assert stored_settings(path) == stored_settings(tmp_path) == {}
    (tmp_path / "config.json").write_text('{"width": 3}')
    assert stored_settings(path) == stored_settings(tmp_path) == {"width": 3}


def test_the_fingerprint_follows_every_tensor_name_and_setting(tensors: dict[str, Tensor]) -> None:
    model = nn.Linear(2, 3)
    model.load_state_dict(tensors)
    first = fingerprint(model, {"a": 1, "b": 2})
    assert len(first) == 64
    assert fingerprint(model, {"b": 2, "a": 1}) == first
    assert fingerprint(model, {"a": 1, "b": 3}) != first
    assert fingerprint(nn.Sequential(model), {"a": 1, "b": 2}) != first
    with torch.no_grad():
        model.bias[0] = torch.nextafter(model.bias[0], torch.tensor(10.0))
    assert fingerprint(model, {"a": 1, "b": 2}) != first


def test_a_class_of_old_lightning_that_is_a_key_of_the_file_is_read_over_without_that_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "pytorch_lightning.callbacks.model_checkpoint"
    for part in ("pytorch_lightning", "pytorch_lightning.callbacks", name):
        monkeypatch.setitem(modules, part, ModuleType(part))
    callback = type("ModelCheckpoint", (), {"__module__": name})
    monkeypatch.setattr(modules[name], "ModelCheckpoint", callback, raising=False)
    saved = {"callbacks": {callback: {"best": 1.0}}, "state_dict": {"weight": torch.ones(2)}}
    torch.save(saved, tmp_path / "last.ckpt")
    monkeypatch.undo()
    assert set(read_tensors(tmp_path / "last.ckpt")) == {"weight"}
