"""What a linear layer reads off frozen continuous tokens of rendered scenes, patch by patch and picture by picture.

Every stage that a tokenizer makes of its tokens is probed on its own: for MingTok (arXiv:2510.06590) its latents and
its semantic tokens. A patch counts if it shows a thing, and is asked for its colour, shape and texture; a picture, as
the mean of its tokens, for those of its nearest thing and for how many things there are.
B images, N tokens of a square grid, D width of a stage, T rows.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from vistok.data.scenes.layout import COLORS, SHAPES, TEXTURES, Thing
from vistok.data.scenes.patch_truth import patch_truth
from vistok.data.scenes.render import Scene, render
from vistok.metrics.linear_probe import linear_probe
from vistok.metrics.reconstruction import psnr
from vistok.tokens import TokenTensor

_LOOKS = {"color": COLORS, "shape": SHAPES, "texture": TEXTURES}
LEVELS = ("patch", "image")


@dataclass(frozen=True)
class ProbeRow:
    """One attribute at one level: accuracy of each stage in 0..1, chance of always naming the commonest class."""

    level: str
    attribute: str
    chance: float
    accuracy: dict[str, float]


@dataclass(frozen=True)
class SceneProbe:
    """rows: level by level; psnr in dB of the held-out scenes, None if the tokenizer does not decode."""

    rows: list[ProbeRow]
    psnr: float | None

    def mean(self, level: str) -> ProbeRow:
        """The mean over a level's attributes."""
        rows = [row for row in self.rows if row.level == level]
        stages = {stage: sum(row.accuracy[stage] for row in rows) / len(rows) for stage in rows[0].accuracy}
        return ProbeRow(level, "mean", sum(row.chance for row in rows) / len(rows), stages)


class _Rows(NamedTuple):
    """features: (level, stage) -> [T, D]; labels: (level, attribute) -> [T]."""

    features: dict[tuple[str, str], Tensor]
    labels: dict[tuple[str, str], Tensor]
    psnr: float | None


@torch.inference_mode()
def scene_probe(
    model: Any, fitted_on: Sequence[int], measured_on: Sequence[int], *, side: int = 96, batch: int = 50
) -> SceneProbe:
    """Fit on the scenes of some seeds, measure on those of others, rendered at `side` pixels.

    Raises: ValueError for no scenes, tokens that are not continuous or no square grid, or a side that the grid does
    not divide.
    """
    if not fitted_on or not measured_on:
        raise ValueError("scene_probe: expected scenes to fit on and to measure on, got none")
    learn, held = (_rows(model, seeds, side, batch) for seeds in (fitted_on, measured_on))
    rows = []
    for (level, attribute), labels in learn.labels.items():
        truth = held.labels[level, attribute]
        probes = {
            stage: linear_probe(learn.features[place, stage], labels, held.features[place, stage], truth)
            for place, stage in learn.features
            if place == level
        }
        chance = next(iter(probes.values())).chance
        rows.append(ProbeRow(level, attribute, chance, {stage: probe.accuracy for stage, probe in probes.items()}))
    return SceneProbe(rows, held.psnr)


def stages_of(model: Any, tokens: TokenTensor) -> dict[str, TokenTensor]:
    """The tokens of `encode` by the name of their stage, and the semantic ones where the tokenizer makes them."""
    if hasattr(model, "semantic"):
        return {"latent": tokens, "semantic": model.semantic(tokens)}
    return {"token": tokens}


def _rows(model: Any, seeds: Sequence[int], side: int, batch: int) -> _Rows:
    features: dict[tuple[str, str], list[Tensor]] = {}
    labels: dict[tuple[str, str], list[Tensor]] = {}
    decibels = []
    for scenes in _scenes(seeds, side, batch):
        images = torch.from_numpy(np.stack([scene.image for scene in scenes])).permute(0, 3, 1, 2).float() / 255
        tokens = model.encode(images)
        truth = patch_truth(scenes, _patch(model, tokens, side))
        nearest = [scene.layout.things[0] for scene in scenes]
        for stage, found in stages_of(model, tokens).items():
            assert found.embeds is not None
            embeds = found.embeds[:, tokens.spec.prefix :].float()
            features.setdefault(("patch", stage), []).append(embeds[truth.shown])
            features.setdefault(("image", stage), []).append(embeds.mean(1))
        of_patches = {name: truth.classes[name][truth.shown] - 1 for name in _LOOKS}
        of_images = _looks(nearest) | {"count": truth.count - 1}
        for level, found_labels in zip(LEVELS, (of_patches, of_images), strict=True):
            for name, values in found_labels.items():
                labels.setdefault((level, name), []).append(values)
        if "decode" not in getattr(model, "cannot", ()):
            decibels.append(float(psnr(model.decode(tokens), images)) * len(scenes))
    return _Rows(_joined(features), _joined(labels), sum(decibels) / len(seeds) if decibels else None)


def _scenes(seeds: Sequence[int], side: int, batch: int) -> Iterator[list[Scene]]:
    for start in range(0, len(seeds), batch):
        yield [render(seed, side) for seed in seeds[start : start + batch]]


def _patch(model: Any, tokens: TokenTensor, side: int) -> int:
    grid = tokens.spec.grid
    name = getattr(model, "name", type(model).__name__)
    if tokens.embeds is None or tokens.spec.codebook_sizes:
        raise ValueError(f"scene_probe: expected a tokenizer with continuous tokens, as mingtok_nano, got {name}")
    if len(grid) != 2 or grid[0] != grid[1] or tokens.num_slots - tokens.spec.prefix != grid[0] * grid[1]:
        raise ValueError(f"scene_probe: expected tokens of a square grid, got a grid {grid} from {name}")
    if side % grid[0]:
        raise ValueError(f"scene_probe: expected a side that {grid[0]} rows of tokens of {name} divide, got {side}")
    return side // grid[0]


def _looks(things: Sequence[Thing]) -> dict[str, Tensor]:
    return {
        name: torch.tensor([values.index(getattr(thing, name)) for thing in things]) for name, values in _LOOKS.items()
    }


def _joined(parts: Mapping[tuple[str, str], Sequence[Tensor]]) -> dict[tuple[str, str], Tensor]:
    return {name: torch.cat(list(rows)) for name, rows in parts.items()}
