"""Weights in and out: safe reading of every file format, strict loading, fingerprints. Nothing here unpickles code."""

import hashlib
import json
import os
from argparse import Namespace
from collections.abc import Mapping
from importlib.resources import as_file, files
from pathlib import Path
from pickle import UnpicklingError
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

_FILES = (".safetensors", ".pt", ".pth", ".ckpt", ".bin", ".npz")


def locate(checkpoint: str | os.PathLike[str]) -> Path:
    """The local file or folder of a checkpoint.

    checkpoint: a path; `embedded:name` (shipped with vistok); `hf:owner/name[@revision]` (fetched once by
    huggingface_hub). A local path always wins. Raises: FileNotFoundError naming what was tried.
    """
    path = Path(checkpoint)
    if path.exists():
        return path
    scheme, _, name = str(checkpoint).partition(":")
    if scheme == "embedded":
        with as_file(files("vistok").joinpath("pretrained", name)) as folder:
            if folder.is_dir():
                return folder
        raise FileNotFoundError(f"no embedded weights {name!r} in vistok/pretrained; `vistok list` shows what there is")
    if scheme == "hf":
        from huggingface_hub import snapshot_download

        repo, _, revision = name.partition("@")
        patterns = ["config.json", *(f"*{suffix}" for suffix in _FILES)]
        return Path(snapshot_download(repo, revision=revision or None, allow_patterns=patterns))
    raise FileNotFoundError(
        f"no checkpoint {str(checkpoint)!r}: expected a file, a folder, embedded:name or hf:owner/name[@revision]"
    )


def weight_file(checkpoint: str | os.PathLike[str]) -> Path:
    """The one file that holds a checkpoint's tensors. Raises: FileNotFoundError, ValueError if a folder has several."""
    path = locate(checkpoint)
    if path.is_file():
        return path
    found = sorted(entry for entry in path.iterdir() if entry.suffix in _FILES)
    preferred = [entry for entry in found if entry.name == "model.safetensors"]
    if len(preferred or found) != 1:
        raise ValueError(
            f"{path}: expected model.safetensors or one weight file, got {[entry.name for entry in found]}"
        )
    return (preferred or found)[0]


def stored_settings(checkpoint: str | os.PathLike[str]) -> dict[str, Any]:
    """The settings saved beside the weights in config.json, empty if there are none."""
    path = locate(checkpoint)
    config = (path if path.is_dir() else path.parent) / "config.json"
    return json.loads(config.read_text(encoding="utf-8")) if config.is_file() else {}


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Every tensor of a weight file by name; a single nested mapping under model, ema or state_dict is entered.

    Raises: ValueError for an unknown suffix, a damaged file, one that holds code, or one that holds no tensors.
    """
    if path.suffix not in _FILES:
        raise ValueError(f"{path}: expected one of {', '.join(_FILES)}, got {path.suffix or 'no suffix'}")
    try:
        loaded = _load(path)
    except (SafetensorError, UnpicklingError, BadZipFile, EOFError, RuntimeError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(f"{path}: expected a whole file of plain tensors, got {reason}") from error
    for key in ("ema", "model", "state_dict"):
        if isinstance(loaded, Mapping) and isinstance(loaded.get(key), Mapping):
            loaded = loaded[key]
    tensors = {name: value for name, value in loaded.items() if isinstance(value, Tensor)}
    if not tensors:
        raise ValueError(f"{path}: expected a mapping of tensors, found none")
    return tensors


def _load(path: Path) -> Any:
    if path.suffix == ".safetensors":
        return load_file(path)
    if path.suffix == ".npz":
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
            return {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    # Authors save the arguments of their training run beside the weights: a plain record, which is not used.
    with torch.serialization.safe_globals([Namespace]):
        return torch.load(path, map_location="cpu", weights_only=True)


def load_weights(model: nn.Module, checkpoint: str | os.PathLike[str]) -> None:
    """Load a checkpoint into `model`, every key accounted for; `model.rename_keys(tensors)` maps foreign layouts.

    Raises: ValueError naming missing, unexpected and mis-shaped tensors.
    """
    path = weight_file(checkpoint)
    tensors = read_tensors(path)
    rename = getattr(model, "rename_keys", None)
    if rename is not None:
        tensors = rename(tensors)
    load_tensors(model, tensors, f"{path} does not fit {type(model).__name__}")


def load_tensors(model: nn.Module, tensors: Mapping[str, Tensor], failure: str) -> None:
    """Load tensors by name, every one of both sides accounted for.

    Raises: ValueError beginning with `failure`, naming missing, unexpected and mis-shaped tensors.
    """
    own = model.state_dict()
    problems = [f"missing {name} {list(own[name].shape)}" for name in own if name not in tensors]
    problems += [f"unexpected {name} {list(tensors[name].shape)}" for name in tensors if name not in own]
    problems += [
        f"{name}: expected {list(own[name].shape)}, got {list(tensors[name].shape)}"
        for name in own
        if name in tensors and own[name].shape != tensors[name].shape
    ]
    if problems:
        shown = "; ".join(problems[:8]) + (f"; and {len(problems) - 8} more" if len(problems) > 8 else "")
        raise ValueError(f"{failure}: {shown}")
    model.load_state_dict(tensors)


def fingerprint(model: nn.Module, settings: Mapping[str, Any]) -> str:
    """sha256 (hex) of a model's settings and of every tensor's name, dtype, shape and bytes."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
    for name, tensor in sorted(model.state_dict().items()):
        data = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {data.dtype} {list(data.shape)}".encode())
        digest.update(data.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
