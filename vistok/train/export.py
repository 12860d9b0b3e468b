"""From a trained autoencoder to a folder that `checkpoint=` takes: float16 weights, settings, latent statistics."""

import copy
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vistok.data.images import list_images, open_image
from vistok.layers.normalizer import NormalizedLatent
from vistok.train.latent_statistics import RunningMoments

_STATISTICS_SIDE = 512  # pixels of the shorter side at which latent statistics are taken


def export(model: Any, photos: Sequence[str | Path], folder: str | Path) -> None:
    """Write `model` as float16 to `folder`, whole or not at all; a continuous one gets its latent statistics first.

    photos: folders of the training pictures, over which mean and std per channel are measured.
    """
    exported = copy.deepcopy(model).eval()
    if exported.normalizer is not None:
        exported.set_latent_statistics(*latent_statistics(exported, photos))
    write_half(exported, Path(folder))


def write_half(model: Any, folder: Path) -> None:
    """Write settings and float16 weights of `model` to `folder`, whole or not at all."""
    partial = folder.with_name(f"{folder.name}.tmp.{os.getpid()}")
    copy.deepcopy(model).half().save_pretrained(partial)
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(partial, folder)


@torch.inference_mode()
def latent_statistics(model: Any, photos: Sequence[str | Path]) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation [D] float64 of raw latents over all positions of all pictures, in one pass."""
    moments = RunningMoments(model.dim)
    for path in (path for folder in photos for path in list_images(folder)):
        image = open_image(path)
        image.thumbnail((2 * _STATISTICS_SIDE, 2 * _STATISTICS_SIDE))
        tokens = model.encode(model.preprocess(image)[None])
        assert tokens.embeds is not None
        moments.update(model.normalizer.denormalize(NormalizedLatent(tokens.embeds)).values)
    found = moments.result()
    return found.mean, found.std.clamp(min=1e-6)
