"""Images with one label each, to fit and to test classifiers on: attributes of rendered scenes, and Fashion-MNIST.

N images, S their side.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vistok.data.fashion_mnist import CLASSES, read_fashion_mnist
from vistok.data.scenes.attributes import ATTRIBUTES, labelled_scenes
from vistok.data.scenes.splits import seeds_of

FASHION = "fashion_mnist"
TASKS = (*ATTRIBUTES, FASHION)
_FIT_FROM = 2**31  # no training of ours reaches these scenes of the training split


class LabelledImages(NamedTuple):
    """images [N, 3, S, S] float32 in [0, 1]; labels: task -> [N] int64."""

    images: Tensor
    labels: dict[str, Tensor]


def source_of(task: str) -> str:
    """What a task's images are: "portrait", "scene" or "fashion_mnist". Raises: ValueError for an unknown task."""
    if task not in TASKS:
        raise ValueError(f"task: expected one of {', '.join(TASKS)}, got {task!r}")
    return ATTRIBUTES[task].view if task in ATTRIBUTES else FASHION


def classes_of(task: str) -> tuple[str, ...]:
    """Names of the labels. Raises: ValueError for an unknown task."""
    return CLASSES if source_of(task) == FASHION else ATTRIBUTES[task].classes


def labelled_images(source: str, split: str, count: int, side: int, folder: str | Path | None = None) -> LabelledImages:
    """The first `count` images of a source, the same each time; scenes of one split are never those of the other.

    split: "train" or "test". folder: with the files of Fashion-MNIST, whose images are drawn in an order of their own
    and enlarged from 28 pixels bilinearly. Raises: ValueError without a folder for it, or for more images than it has.
    """
    if source != FASHION:
        first = _FIT_FROM if split == "train" else 0
        scenes = labelled_scenes(source, seeds_of(split)[first : first + count], side)
        images = torch.from_numpy(scenes.images).permute(0, 3, 1, 2).float() / 255
        return LabelledImages(images, {name: torch.from_numpy(labels) for name, labels in scenes.labels.items()})
    if folder is None:
        raise ValueError(
            f"{FASHION}: expected the folder with its files, as `{FASHION}: DIR` among the settings; "
            f"`vistok data {FASHION} DIR` fetches them"
        )
    found = read_fashion_mnist(folder, split)
    if count > len(found.labels):
        raise ValueError(f"{FASHION}: expected at most {len(found.labels)} images of {split!r}, got {count}")
    order = np.random.default_rng(0).permutation(len(found.labels))[:count]
    return LabelledImages(_enlarged(found.images[order], side), {FASHION: torch.from_numpy(found.labels[order])})


def _enlarged(images: NDArray[np.uint8], side: int) -> Tensor:
    grey = torch.from_numpy(images)[:, None].float() / 255
    return nn.functional.interpolate(grey, size=(side, side), mode="bilinear").expand(-1, 3, -1, -1).contiguous()
