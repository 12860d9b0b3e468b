"""PCA of image patches: the best linear autoencoder of a size, a baseline for continuous tokens."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Self

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import pad, pixel_shuffle, pixel_unshuffle

from vistok.data.images import list_images, open_image, reduced
from vistok.layers.preprocess import Preprocess

SCALES = (1024, 512, 256)


class PatchPca:
    """Projection onto the first principal components of patch x patch x 3 pixels, float64."""

    def __init__(self, mean: Tensor, components: Tensor, patch: int) -> None:
        """mean [3 * patch^2], components [3 * patch^2, K] with orthonormal columns."""
        self.mean, self.components, self.patch = mean, components, patch

    @classmethod
    def fit(cls, folder: str | Path, components: int = 16, patch: int = 8, scales: Sequence[int] = SCALES) -> Self:
        """Fit on every patch of every picture below `folder`, reduced to shorter sides `scales` as in training.

        A picture smaller than all scales is taken as it is. Raises: FileNotFoundError, ValueError as list_images.
        """
        width = 3 * patch**2
        count, total, squares = 0, torch.zeros(width).double(), torch.zeros(width, width).double()
        for path in list_images(folder):
            for image in _levels(open_image(path), scales):
                height, breadth = (side - side % patch for side in image.shape[1:])
                rows = _patches(image[None, :, :height, :breadth].double(), patch).reshape(-1, width)
                count += len(rows)
                total += rows.sum(0)
                squares += rows.T @ rows
        if count < 2:
            raise ValueError(f"{folder}: expected at least two patches of {patch} px to fit a PCA, found {count}")
        mean = total / count
        _, vectors = torch.linalg.eigh(squares / count - torch.outer(mean, mean))
        return cls(mean, vectors.flip(1)[:, :components], patch)

    def __call__(self, images: Tensor) -> Tensor:
        """images [B, 3, H, W] in [0, 1], any size (reflect-pad, crop) -> reconstructions float32 in [0, 1]."""
        height, width = images.shape[2:]
        padded = pad(images.double(), (0, -width % self.patch, 0, -height % self.patch), mode="reflect")
        rows = _patches(padded, self.patch) - self.mean
        rows = rows @ self.components @ self.components.T + self.mean
        whole = pixel_shuffle(rows.permute(0, 3, 1, 2), self.patch)
        return whole[:, :, :height, :width].clamp(0, 1).float()


def _patches(images: Tensor, patch: int) -> Tensor:
    return pixel_unshuffle(images, patch).permute(0, 2, 3, 1)


def _levels(picture: Image.Image, scales: Sequence[int]) -> Iterator[Tensor]:
    short = min(picture.size)
    for side in [scale for scale in scales if scale <= short] or [short]:
        yield Preprocess()(reduced(picture, side))
