"""The questions of `vistok.data.scenes` for a vision-language model: fixed by split and count, pictures by seed."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vistok.data.scenes.questions import balanced_questions
from vistok.data.scenes.render import MAX_SIDE, MIN_SIDE, render
from vistok.lvlm.prompting import VisualQuestion

Grid = tuple[int, int]


def scene_questions(split: str, count: int) -> list[VisualQuestion]:
    """`count` questions of equally frequent kinds, each about a scene of its own; the same for the same arguments."""
    return [VisualQuestion(q.seed, q.text, q.answer, q.kind) for q in balanced_questions(split, count)]


def scene_picture(side: int) -> Callable[[int], Image.Image]:
    """Opens the scene of a seed at side x side pixels."""
    return lambda seed: Image.fromarray(render(seed, side).image)


def scene_side(processor: Any) -> int:
    """The side in pixels at which a model sees pictures, as near to it as scenes can be rendered."""
    images = processor.image_processor
    # A crop size may be set where nothing is cropped.
    crop = getattr(images, "crop_size", None) if getattr(images, "do_center_crop", False) else None
    sizes = [crop, getattr(images, "size", None)]
    named = [getattr(size, key, None) for size in sizes for key in ("height", "shortest_edge")]
    wished = next((side for side in named if side), MAX_SIDE)
    return min(max(int(wished), MIN_SIDE), MAX_SIDE)


def scene_foreground(side: int) -> Callable[[int, Grid], NDArray[np.float64]]:
    """Opens the mask of the scene of a seed as `foreground_order` orders it."""
    return lambda seed, grid: foreground_order(render(seed, side).masks, grid)


def foreground_order(masks: NDArray[np.bool_], grid: Grid) -> NDArray[np.float64]:
    """How much each patch matters to questions about things, [rows, cols]: the higher the more.

    masks: [things, S, S] bool. Things take turns, each with the patch that shows most of it among those left; patches
    that show none follow (below 0), the nearest to one that does first.
    """
    cover = patch_cover(masks, grid)
    by_thing = np.argsort(-cover, axis=1, kind="stable")
    turn = np.argsort(by_thing, axis=1)
    # A share is at most 1, so that within a turn it decides and never reaches into another turn.
    wish = np.where(cover > 0, cover / 2 - turn, -np.inf).max(axis=0, initial=-np.inf).reshape(grid)
    near = np.argwhere(np.isfinite(wish))
    if not len(near):
        return np.zeros(grid)
    rows, cols = np.indices(grid)
    distance = np.hypot(rows[..., None] - near[:, 0], cols[..., None] - near[:, 1]).min(axis=-1)
    order: NDArray[np.float64] = np.where(np.isfinite(wish), wish + wish.size, -distance)
    return order


def patch_cover(masks: NDArray[np.bool_], grid: Grid) -> NDArray[np.float64]:
    """Share of each patch that a thing covers, [things, rows * cols] in 0..1."""
    rows, cols = (np.arange(size) * parts // size for size, parts in zip(masks.shape[1:], grid, strict=True))
    patch = (rows[:, None] * grid[1] + cols).ravel()
    sizes = np.bincount(patch, minlength=grid[0] * grid[1])
    counts = [np.bincount(patch, weights=mask.ravel(), minlength=len(sizes)) for mask in masks]
    shares: NDArray[np.float64] = np.array(counts).reshape(-1, len(sizes)) / sizes
    return shares
