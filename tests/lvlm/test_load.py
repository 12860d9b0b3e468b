"""A model and its processor from a folder, and what is said of folders that hold none."""

import json
from pathlib import Path

import pytest
import torch

from vistok.lvlm.load import load_lvlm

from .micro_fixtures import save_tiny_micro


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_micro(tmp_path_factory.mktemp("lvlm"))


def test_a_folder_gives_model_and_processor_in_float32_for_a_cpu(folder: Path) -> None:
    model, processor = load_lvlm(folder)
    assert (model.dtype, model.device.type, model.training) == (torch.float32, "cpu", False)
    assert processor.image_token == "<image>" and processor.image_processor.size["height"] == 48
    stored, _ = load_lvlm(str(folder), dtype=torch.float16)
    assert stored.dtype == torch.float16
    for (name, own), other in zip(model.state_dict().items(), stored.state_dict().values(), strict=True):
        assert torch.equal(own.half(), other), name


def test_the_name_of_the_embedded_model_and_other_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("micro_lvm", "owner/name", "hf:", str(tmp_path / "absent")):
        with pytest.raises(FileNotFoundError, match=r"expected micro_lvlm, a folder or hf:owner/name"):
            load_lvlm(name)


def test_a_folder_without_its_parts_is_an_error_that_names_them(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        load_lvlm(tmp_path)
    for file in folder.iterdir():
        if file.name != "model.safetensors":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    with pytest.raises(FileNotFoundError, match="config.json, weights and processor files"):
        load_lvlm(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(ValueError, match="image-text-to-text"):
        load_lvlm(tmp_path)


def test_a_repository_that_cannot_be_fetched_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(FileNotFoundError, match="hf:vistok-tests/absent@v1: expected a folder or hub repository"):
        load_lvlm("hf:vistok-tests/absent@v1")


def test_a_processor_without_a_chat_template_is_refused(folder: Path, tmp_path: Path) -> None:
    for file in folder.iterdir():
        if file.name != "chat_template.jinja":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    with pytest.raises(ValueError, match="chat template"):
        load_lvlm(tmp_path)
