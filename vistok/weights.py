"""Weights in and out: safe reading of every file format, strict loading, fingerprints. Nothing here unpickles code."""

import hashlib
import json
import os
import warnings
from argparse import Namespace
from collections.abc import Mapping, Sequence
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
_PREFERRED = ("model.safetensors", "diffusion_pytorch_model.safetensors")
_SETTINGS = ("config.json",)
_SCRIPTS = ("encoder.jit", "decoder.jit")


def locate(checkpoint: str | os.PathLike[str], preferred: Sequence[str] = _PREFERRED) -> Path:
    """The local file or folder of a checkpoint; of a repository, the first of `preferred` that is there is fetched.

    checkpoint: a path; `embedded:name` (shipped with vistok); `hf:owner/name[/folder or file][@revision]` (fetched once
    by huggingface_hub; of a file, that one and the configs beside it). A local path always wins.
    Raises: FileNotFoundError naming what was tried.
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
        return _fetch(name, preferred)
    raise FileNotFoundError(
        f"no checkpoint {str(checkpoint)!r}: expected a file, a folder, embedded:name or "
        "hf:owner/name[/folder or file][@revision]"
    )


def repository(name: str | os.PathLike[str]) -> tuple[str, str | None]:
    """What transformers and diffusers call a folder or [hf:]owner/name[@revision], and the revision.

    A folder that is there is taken as it is: its path may hold an @.
    """
    if Path(name).exists():
        return str(name), None
    place, _, revision = str(name).removeprefix("hf:").partition("@")
    return place, revision or None


def _fetch(name: str, preferred: Sequence[str]) -> Path:
    """The local copy of owner/name[/folder or file][@revision]: configs, and that file or the best of the weights."""
    from huggingface_hub import snapshot_download

    address, _, revision = name.partition("@")
    parts = address.split("/", 2)
    repo = "/".join(parts[:2])
    if len(parts) > 2 and Path(parts[2]).suffix in (*_FILES, ".jit"):
        folder, _, _ = parts[2].rpartition("/")
        beside = [f"{folder}/{config}" if folder else config for config in ("config.json", "*_config.json")]
        root = snapshot_download(repo, revision=revision or None, allow_patterns=[parts[2], *beside])
        if not Path(root, parts[2]).is_file():
            raise FileNotFoundError(f"hf:{name}: no such file in the repository")
        return Path(root, parts[2])
    inside = "".join(f"{part}/" for part in parts[2:])
    # Repositories hold the same weights in several formats, and whole pipelines in folders beside them.
    other = [f"{inside}*/*"]
    for weights in [*preferred, *(f"*{suffix}" for suffix in (*_FILES, ".jit"))]:
        patterns = [f"{inside}*config.json", f"{inside}{weights}"]
        root = snapshot_download(repo, revision=revision or None, allow_patterns=patterns, ignore_patterns=other)
        if any(entry.suffix in (*_FILES, ".jit") for entry in Path(root, inside).glob("*")):
            return Path(root, inside)
    raise FileNotFoundError(f"hf:{name}: expected weights ({', '.join(_FILES)}) in the repository, found none")


def weight_file(checkpoint: str | os.PathLike[str], preferred: Sequence[str] = _PREFERRED) -> Path:
    """The one file that holds a checkpoint's tensors: the first of `preferred` that is there, or the only one.

    Raises: FileNotFoundError; ValueError if a folder has several and none is preferred.
    """
    path = locate(checkpoint, preferred)
    if path.is_file():
        return path
    found = sorted(entry for entry in path.iterdir() if entry.suffix in _FILES)
    for name in preferred:
        if path / name in found:
            return path / name
    if len(found) != 1:
        raise ValueError(
            f"{path}: expected {preferred[0]} or one weight file, got {[entry.name for entry in found]}; name the "
            "file, of a repository as hf:owner/name/FILE"
        )
    return found[0]


def stored_settings(checkpoint: str | os.PathLike[str], build: Any = None) -> dict[str, Any]:
    """The settings saved beside the weights in config.json, empty if there are none.

    build: the method they are for, whose `config_files` are looked for instead, best first.
    """
    path = locate(checkpoint, getattr(build, "weight_files", _PREFERRED))
    folder = path if path.is_dir() else path.parent
    for name in getattr(build, "config_files", _SETTINGS):
        if (folder / name).is_file():
            stored: dict[str, Any] = json.loads((folder / name).read_text(encoding="utf-8"))
            return stored
    return {}


def read_checkpoint(
    checkpoint: str | os.PathLike[str],
    *,
    trust: bool = False,
    under: Sequence[str] = (),
    preferred: Sequence[str] = _PREFERRED,
) -> tuple[Path, dict[str, Tensor]]:
    """Where a checkpoint is, and its tensors by name.

    trust: read TorchScript too, a folder with encoder.jit and decoder.jit, for its tensors; nothing of it is called,
    but torch itself makes no promise about scripts of strangers. under: names of nested mappings to enter, as far as
    they are there. preferred: as of `weight_file`. Raises: ValueError for TorchScript without trust, and as
    `read_tensors`.
    """
    path = locate(checkpoint, preferred)
    scripts = [path / name for name in _SCRIPTS if path.is_dir() and (path / name).is_file()]
    if path.suffix == ".jit":
        scripts = [path]
    if not scripts or (path.is_dir() and any((path / name).is_file() for name in preferred)):
        file = weight_file(path, preferred)
        return file, read_tensors(file, under)
    if not trust:
        raise ValueError(
            f"{path}: {' and '.join(script.name for script in scripts)} are TorchScript, which holds programs; if you "
            "trust whoever made them, pass trust=True"
        )
    tensors: dict[str, Tensor] = {}
    for script in scripts:
        try:
            with warnings.catch_warnings():
                # torch calls TorchScript deprecated; these files exist all the same.
                warnings.simplefilter("ignore", FutureWarning)
                loaded = torch.jit.load(script, map_location="cpu")
        except RuntimeError as error:
            reason = str(error).strip().partition("\n")[0]
            raise ValueError(f"{script}: expected a whole TorchScript file, got {reason}") from error
        tensors |= loaded.state_dict()
    return path, tensors


def read_tensors(path: Path, under: Sequence[str] = ()) -> dict[str, Tensor]:
    """Every tensor of a weight file by name; a single nested mapping under model, ema or state_dict is entered.

    under: names of further mappings to enter before, as far as they are there.
    Raises: ValueError for an unknown suffix, a damaged file, one that holds code, or one that holds no tensors.
    """
    if path.suffix not in _FILES:
        raise ValueError(f"{path}: expected one of {', '.join(_FILES)}, got {path.suffix or 'no suffix'}")
    try:
        loaded = _load(path)
    except (SafetensorError, UnpicklingError, BadZipFile, EOFError, RuntimeError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(f"{path}: expected a whole file of plain tensors, got {reason}") from error
    for key in (*under, "ema", "model", "state_dict"):
        if isinstance(loaded, Mapping) and isinstance(loaded.get(key), Mapping):
            loaded = loaded[key]
    if not isinstance(loaded, Mapping):
        raise ValueError(f"{path}: expected a mapping of tensors, found a {type(loaded).__name__}")
    tensors = {name: value for name, value in loaded.items() if isinstance(value, Tensor)}
    if not tensors:
        raise ValueError(f"{path}: expected a mapping of tensors, found none")
    return tensors


class _Mentioned:
    """Stands for a class that files of old Lightning versions name; it has nothing to run."""

    name = "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint"


def _load(path: Path) -> Any:
    if path.suffix == ".safetensors":
        return load_file(path)
    if path.suffix == ".npz":
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
            return {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    # Authors save the arguments of their training run beside the weights, and old versions of Lightning use a class of
    # theirs as a key: a plain record and a name, neither of which is used.
    with torch.serialization.safe_globals([Namespace, (_Mentioned, _Mentioned.name)]):
        return torch.load(path, map_location="cpu", weights_only=True)


def load_weights(model: nn.Module, checkpoint: str | os.PathLike[str], *, trust: bool = False) -> None:
    """Load a checkpoint into `model`, every key accounted for.

    `model.rename_keys(tensors)` maps foreign layouts, `model.weights_under` names the nested mappings that hold them,
    `model.weight_files` which file of a folder that has several is read, best first.
    Raises: ValueError naming missing, unexpected and mis-shaped tensors, and as `read_checkpoint`.
    """
    path, tensors = read_checkpoint(
        checkpoint,
        trust=trust,
        under=getattr(model, "weights_under", ()),
        preferred=getattr(model, "weight_files", _PREFERRED),
    )
    rename = getattr(model, "rename_keys", None)
    if rename is not None:
        tensors = rename(tensors)
    load_tensors(model, tensors, f"{path} does not fit {type(model).__name__}")


def load_tensors(model: nn.Module, tensors: Mapping[str, Tensor], failure: str) -> None:
    """Load tensors by name, every one of both sides accounted for.

    Raises: ValueError beginning with `failure`, naming missing, unexpected and mis-shaped tensors.
    """
    problems = misfits(model, tensors)
    if problems:
        shown = "; ".join(problems[:8]) + (f"; and {len(problems) - 8} more" if len(problems) > 8 else "")
        raise ValueError(f"{failure}: {shown}")
    model.load_state_dict(tensors)


def misfits(model: nn.Module, tensors: Mapping[str, Tensor]) -> list[str]:
    """What keeps tensors under the model's own names from being its weights: missing, unexpected, mis-shaped ones."""
    own = model.state_dict()
    problems = [f"missing {name} {list(own[name].shape)}" for name in own if name not in tensors]
    problems += [f"unexpected {name} {list(tensors[name].shape)}" for name in tensors if name not in own]
    problems += [
        f"{name}: expected {list(own[name].shape)}, got {list(tensors[name].shape)}"
        for name in own
        if name in tensors and own[name].shape != tensors[name].shape
    ]
    return problems


def fingerprint(model: nn.Module, settings: Mapping[str, Any]) -> str:
    """sha256 (hex) of a model's settings and of every tensor's name, dtype, shape and bytes."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
    for name, tensor in sorted(model.state_dict().items()):
        data = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {data.dtype} {list(data.shape)}".encode())
        digest.update(data.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
