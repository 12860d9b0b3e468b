"""The state of a training on disk, `last.pt`, and the weights that it made: whole or not at all."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

_NAME = "last.pt"


def write_state(folder: Path, state: Mapping[str, Any]) -> None:
    """Put tensors, numbers and containers of them into `folder`, in place of what was there."""
    partial = folder / f"{_NAME}.tmp.{os.getpid()}"
    torch.save(dict(state), partial)
    os.replace(partial, folder / _NAME)


def read_state(folder: Path) -> dict[str, Any] | None:
    """What `write_state` put there, on the CPU; None if it never did."""
    path = folder / _NAME
    if not path.is_file():
        return None
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return state


def write_weights(file: Path, module: nn.Module) -> None:
    """Write a module's state as safetensors, whole or not at all; folders are made."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f"{file.name}.tmp.{os.getpid()}")
    save_file({name: value.contiguous() for name, value in module.state_dict().items()}, partial)
    os.replace(partial, file)
