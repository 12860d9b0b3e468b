"""Portraits as ids of a frozen discrete grid tokenizer, encoded once and kept in a file, with what they show.

S pictures, N tokens of a square grid, D width of codes.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from vistok.data.scenes.portraits import portrait
from vistok.data.scenes.render import render
from vistok.data.scenes.splits import seeds_of
from vistok.tokens import TokenTensor
from vistok.train.portrait_latents import attributes_of_portraits
from vistok.train.portrait_reader import ATTRIBUTES
from vistok.weights import fingerprint

_BATCH = 50


@dataclass(frozen=True)
class PortraitCodes:
    """ids [S, N] int64; attributes: names in ATTRIBUTES -> [S] int64, places among the values there."""

    ids: Tensor
    attributes: Mapping[str, Tensor]

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def shown(self) -> Tensor:
        """The attributes in the order of ATTRIBUTES, [S, 4] int64."""
        return torch.stack([self.attributes[name] for name in ATTRIBUTES], 1)


def kept_portraits(file: Path, tokenizer: Any, split: str, count: int, side: int) -> PortraitCodes:
    """The first portraits of a split, from `file` if it holds just these, else encoded and written there.

    Raises: ValueError for a side that is no multiple of the tokenizer's patch.
    """
    if side % tokenizer.patch:
        raise ValueError(f"portraits: expected a side that is a multiple of the patch {tokenizer.patch}, got {side}")
    weights = fingerprint(tokenizer, {})
    wanted = {"split": split, "count": str(count), "side": str(side), "weights": weights}
    if file.is_file():
        with safe_open(file, "pt") as stored:
            if stored.metadata() == wanted:
                kept = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
                return PortraitCodes(kept.pop("ids"), kept)
    layouts = [portrait(seed) for seed in seeds_of(split)[:count]]
    ids = []
    for start in range(0, count, _BATCH):
        pictures = np.stack([render(layout, side).image for layout in layouts[start : start + _BATCH]])
        with torch.no_grad():
            tokens = tokenizer.encode(torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255)
        ids.append(tokens.indices)
    shown = attributes_of_portraits(layouts)
    found = PortraitCodes(torch.cat(ids), {name: shown[name] for name in ATTRIBUTES})
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f"{file.name}.tmp.{os.getpid()}")
    save_file({"ids": found.ids, **found.attributes}, partial, wanted)
    os.replace(partial, file)
    return found


@torch.no_grad()
def pictures_of(tokenizer: Any, ids: Tensor) -> Tensor:
    """Ids [S, N] of square grids -> pictures [S, 3, side, side] in [0, 1]."""
    side = round(ids.shape[1] ** 0.5)
    spec = replace(tokenizer.spec, grid=(side, side), image_size=(side * tokenizer.patch,) * 2)
    return torch.cat([tokenizer.decode(TokenTensor(spec=spec, indices=part)) for part in ids.split(_BATCH)])
