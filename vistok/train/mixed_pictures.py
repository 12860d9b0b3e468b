"""Batches of photographs and rendered scenes side by side, drawn by (seed, step): a resumed run sees the same."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vistok.data.crops import CropSampler
from vistok.data.scenes.render import render
from vistok.data.scenes.splits import seeds_of


class MixedPictures:
    """The first share of each batch are scenes of the training split, no scene twice; the rest crops of photographs."""

    def __init__(
        self, photos: Sequence[str | Path], side: int, scales: Sequence[int], seed: int, scene_share: float
    ) -> None:
        """side: of all pictures, in pixels; scales: of `CropSampler`. Raises: ValueError for a share outside [0, 1]."""
        if not 0 <= scene_share <= 1:
            raise ValueError(f"pictures: expected scene_share in [0, 1], got {scene_share}")
        self.side, self.seed, self.scene_share = side, seed, scene_share
        self.crops = CropSampler(photos, side, scales, seed) if scene_share < 1 else None

    def batch(self, step: int, size: int) -> Tensor:
        """[size, 3, side, side] float32 in [0, 1]."""
        scenes = round(self.scene_share * size)
        # Seeds beside each other begin 2^24 scenes apart; past the end of the split they begin at its front again.
        split = seeds_of("train")
        first = (self.seed * 2**24 + step * scenes) % (len(split) - scenes)
        seeds = split[first : first + scenes]
        pictures = [torch.from_numpy(np.array(render(seed, self.side).image)).permute(2, 0, 1) for seed in seeds]
        parts = [torch.stack(pictures).float() / 255] if pictures else []
        if scenes < size and self.crops is not None:
            parts.append(self.crops.batch(step, size - scenes))
        return torch.cat(parts)
