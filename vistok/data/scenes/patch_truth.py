"""What every patch of a rendered scene shows, and the whole picture: targets and labels for what reads patches."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vistok.data.scenes.layout import COLORS, DEPTHS, GLYPHS, MAX_THINGS, SHAPES, TEXTURES
from vistok.data.scenes.render import Scene

CLASS_SIZES = {
    "shape": len(SHAPES) + 1,
    "color": len(COLORS) + 1,
    "texture": len(TEXTURES) + 1,
    "glyph": len(GLYPHS) + 1,
}
FLAGS = ("center", "nearest", "farthest")
NUMBERS = 6
PAIRS, COUNTS = len(COLORS) * len(SHAPES), MAX_THINGS + 1
_LEAST_COVER = 0.15  # of a patch, from which on it shows a thing


@dataclass(frozen=True)
class PatchTruth:
    """What each patch shows, and the whole picture: the dense targets of the vision tower.

    classes: name -> [B, N] int64, 0 = nothing there; flags: name -> [B, N] float32 0 or 1; numbers [B, N, 6] float32:
    depth, radius, offset to the centre (2), place of the centre (2), each scaled to about -1..1; shown [B, N] bool.
    pairs [B, 36] float32: which colour and shape are in the picture; count [B] int64.
    """

    classes: dict[str, Tensor]
    flags: dict[str, Tensor]
    numbers: Tensor
    shown: Tensor
    pairs: Tensor
    count: Tensor


def patch_truth(scenes: Sequence[Scene], patch: int) -> PatchTruth:
    """The dense targets of scenes of one size."""
    parts = [_truth_of(scene, patch) for scene in scenes]

    def stacked(name: str, dtype: torch.dtype) -> Tensor:
        return torch.from_numpy(np.stack([part[name] for part in parts])).to(dtype)

    return PatchTruth(
        classes={name: stacked(name, torch.int64) for name in ("shape", "color", "texture", "glyph")},
        flags={name: stacked(name, torch.float32) for name in ("center", "nearest", "farthest")},
        numbers=stacked("numbers", torch.float32),
        shown=stacked("shown", torch.bool),
        pairs=stacked("pairs", torch.float32),
        count=stacked("count", torch.int64),
    )


def _truth_of(scene: Scene, patch: int) -> dict[str, NDArray[Any]]:
    things = scene.layout.things
    side = len(scene.image)
    cells = side // patch
    grid = scene.masks.reshape(len(things), cells, patch, cells, patch)
    cover = grid.mean(axis=(2, 4)).reshape(len(things), -1)
    owner = cover.argmax(axis=0)
    shown = cover.max(axis=0) >= _LEAST_COVER
    classes = {
        "shape": [SHAPES.index(thing.shape) + 1 for thing in things],
        "color": [COLORS.index(thing.color) + 1 for thing in things],
        "texture": [TEXTURES.index(thing.texture) + 1 for thing in things],
        "glyph": [0 if thing.glyph is None else GLYPHS.index(thing.glyph) + 1 for thing in things],
    }
    truth = {name: np.where(shown, np.array(values)[owner], 0) for name, values in classes.items()}
    centres = np.array([(thing.x, thing.y) for thing in things])
    rows, columns = np.divmod(np.arange(cells * cells), cells)
    places = (np.stack((columns, rows), axis=1) + 0.5) / cells
    home = np.floor(np.clip(centres[:, ::-1], 0, 0.999) * cells).astype(int) @ np.array([cells, 1])
    depth = (np.array([thing.depth for thing in things]) - np.mean(DEPTHS)) / 2
    radius = np.array([thing.radius for thing in things]) * 10 - 1
    numbers = np.column_stack((depth[owner], radius[owner], (centres[owner] - places) * 5, centres[owner] * 2 - 1))
    pairs = np.zeros(len(COLORS) * len(SHAPES))
    pairs[scene.class_ids] = 1
    return {
        **truth,
        "center": shown & (home[owner] == np.arange(cells * cells)),
        "nearest": shown & (owner == 0),
        "farthest": shown & (owner == len(things) - 1),
        "numbers": numbers,
        "shown": shown,
        "pairs": pairs,
        "count": np.array(len(things)),
    }
