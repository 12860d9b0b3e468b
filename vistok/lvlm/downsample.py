"""The picture made smaller: the baseline that any choice among tokens has to beat. b: the share of tokens to keep.

A picture of sqrt(b) the side has b the tokens. A model whose number of tokens follows the picture is given that one. A
tower of one fixed side has no smaller input: it is given the small picture enlarged again, so that its tokens know no
more than b of them could say, and one of its tokens stays in the middle of each of b N cells (`Pool.select`). Such a
tower costs what it costs unpruned; what the language model is spared is the same in both cases.
"""

from collections.abc import Callable
from math import sqrt
from typing import Any

from PIL import Image

from vistok.lvlm.family import family_of
from vistok.protocols import Budget
from vistok.pruning.pool import Pool
from vistok.tokens import Selection, TokenTensor

NAME = "downsample"


class EvenlySpaced:
    """Keeps tokens in the middle of equal cells, and averages none: neighbours of an enlarged picture are alike."""

    cannot: frozenset[str] = frozenset()
    needs: frozenset[str] = frozenset()

    def select(self, tokens: TokenTensor, budget: Budget, **context: Any) -> Selection:
        """As `Pool.select`."""
        return Pool().select(tokens, budget, **context)


def sizes_follow_pictures(model: Any) -> bool:
    """Whether a smaller picture makes fewer tokens."""
    return family_of(model).mrope


def shrink(model: Any, processor: Any, share: float) -> Callable[[Image.Image], Image.Image]:
    """What makes a picture say no more than `share` of its visual tokens can.

    Raises: ValueError unless 0 < share <= 1.
    """
    if not 0 < share <= 1:
        raise ValueError(f"downsample: expected a share of the tokens in (0, 1], got {share}")
    if sizes_follow_pictures(model):
        return lambda image: _smaller(image, processor.image_processor, share)
    side = _input_side(processor.image_processor)
    return lambda image: _blurred(image, min(1.0, sqrt(share) * side / min(image.size)))


def _blurred(image: Image.Image, scale: float) -> Image.Image:
    """The picture at `scale`, in its own size again."""
    small = image.resize(_scaled(image.size, scale), Image.Resampling.BICUBIC)
    return small.resize(image.size, Image.Resampling.BICUBIC)


def _smaller(image: Image.Image, images: Any, share: float) -> Image.Image:
    """The picture at sqrt(share) of the size at which the model would have seen it, in whole tokens."""
    _, rows, cols = images(images=[image], return_tensors="pt")["image_grid_thw"][0].tolist()
    step = images.patch_size * images.merge_size
    seen = (cols // images.merge_size, rows // images.merge_size)
    cells = _scaled(seen, sqrt(share))
    return image.resize((cells[0] * step, cells[1] * step), Image.Resampling.BICUBIC)


def _scaled(size: tuple[int, int], scale: float) -> tuple[int, int]:
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def _input_side(images: Any) -> int:
    """The side in pixels at which a tower sees every picture. Raises: ValueError if it is not told."""
    # A crop size may be set where nothing is cropped.
    crop = getattr(images, "crop_size", None) if getattr(images, "do_center_crop", False) else None
    for size in (crop, getattr(images, "size", None)):
        for key in ("height", "shortest_edge"):
            side = getattr(size, key, None)
            if side:
                return int(side)
    raise ValueError(f"downsample: expected an image processor with size or crop_size, got {type(images).__name__}")
