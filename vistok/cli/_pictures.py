"""Squares of pictures as an adaptive tokenizer takes them, for the verbs that measure one."""

from inspect import signature
from typing import Any

import torch
from torch import Tensor

from vistok.cli.encode import load_tokenizer
from vistok.data.crops import tiles
from vistok.data.images import list_images, open_image
from vistok.data.samples import SAMPLES, sample_path

_REDUCED = (4.2, 3.0, 2.1)  # shorter sides of the pictures, in sides of a square


def adaptive_tokenizer(name: str, checkpoint: str | None) -> Any:
    """A tokenizer with weights in eval mode. Raises: ValueError if its `encode` takes no eps."""
    model: Any = load_tokenizer(name, checkpoint)
    if "eps" not in signature(model.encode).parameters:
        raise ValueError(f"tokenizer {name!r} has one length for all images; choose an adaptive one such as karl_nano")
    return model.eval()


def squares(model: Any, folder: str | None, count: int) -> tuple[Tensor, str]:
    """At most `count` squares [n, 3, S, S] of the pictures in `folder` (None = samples of scikit-image), and of what.

    S is the side that the model was trained on; see `squares_of`.
    """
    return squares_of(model.trained_grid[0] * model.patch, folder, count)


def squares_of(side: int, folder: str | None, count: int) -> tuple[Tensor, str]:
    """At most `count` squares [n, 3, side, side] of pictures, and of what.

    Pictures are reduced to a few sizes and cut without overlap. Of more squares than `count`, every k-th is taken.
    """
    paths = [sample_path(name) for name in SAMPLES] if folder is None else list_images(folder)
    scales = [round(side * share) for share in _REDUCED]
    found = torch.cat([tiles(open_image(path), side, scales) for path in paths])
    chosen = found if len(found) <= count else found[torch.linspace(0, len(found) - 1, count).round().long()]
    return chosen, f"{len(chosen)} squares of {side} px from {len(paths)} pictures"
