"""Random training crops of photographs at several scales, drawn by (seed, step): a resumed run sees the same."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vistok.data.images import list_images, open_image, reduced


class CropSampler:
    """Photographs in memory as uint8 pyramids; larger levels are drawn more often (by the root of their area)."""

    def __init__(self, folders: Sequence[str | Path], crop: int, scales: Sequence[int], seed: int) -> None:
        """scales: shorter sides in pixels to which every larger photograph is reduced.

        Raises: ValueError if no photograph is as large as one crop at any scale.
        """
        self.crop, self.seed = crop, seed
        self.levels: list[np.ndarray] = []
        for path in (path for folder in folders for path in list_images(folder)):
            image = open_image(path)
            self.levels += [np.asarray(reduced(image, side)) for side in scales if crop <= side <= min(image.size)]
        if not self.levels:
            raise ValueError(f"no image in {[str(folder) for folder in folders]} is as large as a crop of {crop} px")
        weights = np.sqrt([level.shape[0] * level.shape[1] for level in self.levels])
        self.cumulative = np.cumsum(weights / weights.sum())

    def batch(self, step: int, size: int) -> Tensor:
        """[size, 3, crop, crop] float32 in [0, 1], flipped left-right half of the time."""
        rng = np.random.default_rng([self.seed, step])
        out = np.empty((size, self.crop, self.crop, 3), np.uint8)
        chosen = np.minimum(np.searchsorted(self.cumulative, rng.random(size)), len(self.levels) - 1)
        for row, level in zip(out, (self.levels[i] for i in chosen), strict=True):
            top = rng.integers(level.shape[0] - self.crop + 1)
            left = rng.integers(level.shape[1] - self.crop + 1)
            cut = level[top : top + self.crop, left : left + self.crop]
            row[:] = cut[:, ::-1] if rng.random() < 0.5 else cut
        return torch.from_numpy(out).permute(0, 3, 1, 2).float() / 255


def tiles(picture: Image.Image, side: int, scales: Sequence[int]) -> Tensor:
    """Squares of a picture that do not overlap, [n, 3, side, side] in [0, 1], at each shorter side it is reduced to.

    scales: in pixels; those larger than the picture or smaller than `side` are left out. Raises: ValueError if all are.
    """
    found = []
    for scale in (scale for scale in scales if side <= scale <= min(picture.size)):
        pixels = torch.from_numpy(np.array(reduced(picture, scale))).permute(2, 0, 1).float() / 255
        cut = pixels[:, : pixels.shape[1] // side * side, : pixels.shape[2] // side * side]
        cells = cut.unfold(1, side, side).unfold(2, side, side)
        found.append(cells.permute(1, 2, 0, 3, 4).flatten(0, 1))
    if not found:
        raise ValueError(f"tiles: expected a picture of at least {side} px and a scale that fits, got {picture.size}")
    return torch.cat(found)
