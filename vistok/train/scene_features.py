"""What a frozen vision tower says about rendered scenes, with their captions: worked out once and kept beside the run.

Features lie in float16 in files of some hundred scenes each, written whole or not at all, so a run that is stopped goes
on behind its last file. S scenes, N tokens of the tower, C their width.
"""

import json
from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vistok.data.scenes.captions import caption
from vistok.data.scenes.layout import make_layout
from vistok.data.scenes.render import render
from vistok.data.shard import write_atomic

_AT_ONCE = 50


class SceneFeatures:
    """Rows of `features` are read from their files when asked for; captions [S] are in memory."""

    def __init__(self, files: Sequence[Path], captions: Sequence[str]) -> None:
        self.captions = list(captions)
        self._parts: list[NDArray[np.float16]] = [np.load(file, mmap_mode="r") for file in files]
        self._starts = np.cumsum([0, *(len(part) for part in self._parts)])

    def __len__(self) -> int:
        return len(self.captions)

    def rows(self, chosen: Sequence[int]) -> Tensor:
        """Features [len(chosen), N, C] float32 of scenes by their place."""
        parts = np.searchsorted(self._starts, chosen, side="right") - 1
        rows = [self._parts[part][place - self._starts[part]] for part, place in zip(parts, chosen, strict=True)]
        return torch.from_numpy(np.stack(rows)).float()


def cached_features(
    folder: Path,
    origin: dict[str, Any],
    seeds: range,
    side: int,
    tower: Callable[[Tensor], Tensor],
    *,
    bf16: bool = True,
    per_file: int = 500,
    on_file: Callable[[int], None] | None = None,
) -> SceneFeatures:
    """Features of the scenes of `seeds`, read from `folder` or made there first as far as they are missing.

    origin: what else they depend on, JSON. side: pixels of a scene. tower: [B, 3, side, side] in [0, 1] -> [B, N, C].
    on_file: called with the number of scenes done. Raises: ValueError if the folder holds features of another origin.
    """
    record = folder / "features.json"
    made_of = {**origin, "first": seeds.start, "side": side, "bf16": bf16, "per_file": per_file}
    there = json.loads(record.read_text(encoding="utf-8")) if record.is_file() else made_of
    if there != made_of:
        raise ValueError(f"{folder}: expected features of {made_of}, got those of {there}; choose another `out`")
    write_atomic(record, (json.dumps(made_of, indent=2) + "\n").encode())
    files = []
    for start in range(0, len(seeds), per_file):
        some = seeds[start : start + per_file]
        # The last file may be a short one, which a run over more scenes must not take for a whole one.
        files.append(folder / f"{start // per_file:05d}_{len(some)}.npy")
        if not files[-1].is_file():
            _make(files[-1], some, side, tower, bf16)
        if on_file is not None:
            on_file(start + len(some))
    return SceneFeatures(files, [caption(make_layout(seed)) for seed in seeds])


def scene_features(seeds: Sequence[int], side: int, tower: Callable[[Tensor], Tensor], bf16: bool = False) -> Tensor:
    """Features [S, N, C] float32 of the scenes of `seeds`, rendered at `side` pixels."""
    parts = []
    for start in range(0, len(seeds), _AT_ONCE):
        images = np.stack([render(seed, side).image for seed in seeds[start : start + _AT_ONCE]])
        pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
        with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
            parts.append(tower(pixels).float())
    return torch.cat(parts)


def _make(file: Path, seeds: Sequence[int], side: int, tower: Callable[[Tensor], Tensor], bf16: bool) -> None:
    content = BytesIO()
    np.save(content, scene_features(seeds, side, tower, bf16).half().numpy())
    write_atomic(file, content.getvalue())
