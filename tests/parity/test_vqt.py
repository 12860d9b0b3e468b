"""VQT against the authors' code: what goes in and out of a tiny model, its gradients, and the features it selects."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from vistok.layers.group_lasso import feature_scores, group_lasso, select_features
from vistok.readouts._backbones import backbone_of
from vistok.readouts.vqt import VQT, init_bound
from vistok.readouts.vqt_classifier import VQTClassifier
from vistok.weights import load_tensors

from .conftest import Case, read

FILES = "vqt/*.safetensors"
SELECTED = "select_ids_keep"


def kind(path: Path) -> str:
    """Of weights or of inputs and outputs; a file of another name has no test."""
    for end in ("_state_dict", "_io"):
        if path.stem.endswith(end):
            return end
    raise AssertionError(f"{path.name}: expected a name that ends in _state_dict or _io, nothing compares this file")


def weights(path: Path) -> dict[str, Tensor]:
    tensors = read(path.with_name(f"{path.stem.removesuffix('_io')}_state_dict.safetensors")).tensors
    return {name.removeprefix("sd."): value for name, value in tensors.items()}


def make(case: Case, path: Path, **options: Any) -> VQT:
    sizes = case.config
    vit = VisionTransformer(
        img_size=sizes["img_size"],
        patch_size=sizes["patch_size"],
        embed_dim=sizes["hidden"],
        depth=sizes["layers"],
        num_heads=sizes["heads"],
        mlp_ratio=sizes["mlp"] / sizes["hidden"],
        norm_layer=partial(torch.nn.LayerNorm, eps=sizes["ln_eps"]),
        num_classes=0,
    )
    vqt = VQT(vit, sizes["query_tokens"], **options)
    tensors = weights(path)
    if options.get("readout") == "wsum":
        tensors["combine_params"] = case.tensors["wsum_params"]
    load_tensors(vqt, vqt.rename_keys(tensors), path.name)
    return vqt.eval()


def close(actual: Tensor, expected: Tensor, atol: float) -> None:
    torch.testing.assert_close(actual, expected, atol=atol, rtol=0)


@pytest.mark.parity(FILES, lambda config: True)
def test_every_file_is_compared(path: Path) -> None:
    other = {"_io": "_state_dict", "_state_dict": "_io"}[kind(path)]
    assert path.with_name(f"{path.stem.removesuffix(kind(path))}{other}.safetensors").is_file()


io_files = pytest.mark.parity("vqt/*_io.safetensors", lambda config: True)


@io_files
@pytest.mark.parametrize("mode", ["folded", "kv", "qkv", "masked"])
def test_the_backbone_and_its_queries(case: Case, path: Path, mode: Any) -> None:
    vqt, expected = make(case, path, kv_mode=mode), case.tensors
    seen: list[Tensor] = []
    handle = backbone_of(vqt.vit).embedded.register_forward_hook(lambda *call: seen.append(call[2]))
    out = vqt(expected["input"])
    handle.remove()
    close(seen[0], expected["embeddings"], 5e-5)
    for name in ("encoded", "encoded_without_queries"):
        close(out.backbone_features, expected[name], 5e-6)
    close(out.queries.transpose(0, 1), expected["query_outputs"], 5e-6)
    assert float(vqt.queries.detach().abs().max()) <= init_bound(
        (case.config["patch_size"],) * 2, case.config["hidden"]
    )


@io_files
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("feats_norm_concat", {}),
        ("feats_raw_concat", {"normalize": False}),
        ("feats_norm_pool", {"readout": "mean"}),
        ("feats_norm_wsum", {"readout": "wsum"}),
    ],
)
def test_the_features_of_every_readout(case: Case, path: Path, name: str, options: dict[str, Any]) -> None:
    close(make(case, path, **options)(case.tensors["input"]).features, case.tensors[name], 5e-6)


@io_files
@pytest.mark.parametrize("mode", ["folded", "kv", "qkv", "masked"])
def test_logits_loss_and_gradients(case: Case, path: Path, mode: Any) -> None:
    expected = case.tensors
    model = VQTClassifier(make(case, path, kv_mode=mode), case.config["classes"]).eval()
    head = {f"head.last_layer.{name}": expected[f"head_{name}"] for name in ("weight", "bias")}
    load_tensors(model, model.rename_keys({f"enc.{k}": v for k, v in weights(path).items()} | head), path.name)
    logits = model(expected["input"])
    close(logits, expected["logits"], 5e-6)
    loss = torch.nn.functional.cross_entropy(logits, expected["labels"])
    close(loss, expected["loss"], 1e-6)
    loss.backward()
    close(model.vqt.queries.grad, expected["grad_query"], 1e-6)
    close(model.head.weight.grad, expected["grad_head_weight"], 1e-6)
    assert all(parameter.grad is None for parameter in model.vqt.vit.parameters())


@io_files
def test_the_features_that_group_lasso_selects(case: Case, path: Path) -> None:
    expected, weight = case.tensors, case.tensors["head_weight"]
    close(group_lasso(weight), expected["group_lasso_norm"], 1e-3)
    close(feature_scores(weight), expected["select_scores"], 1e-5)
    names = [name for name in expected if name.startswith(SELECTED)]
    assert names == [f"{SELECTED}{case.config['keep_fraction']}"]
    ids = select_features(weight, case.config["keep_fraction"])
    assert torch.equal(ids, expected[names[0]])
    head = VQTClassifier(make(case, path), case.config["classes"]).head
    head.prune(ids)
    with torch.no_grad():
        head.weight.copy_(expected["selected_head_weight"])
        head.bias.zero_()
    close(head(expected["feats_norm_concat"]), expected["selected_logits"], 5e-6)
