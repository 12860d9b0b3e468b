"""From a picture of any kind to the tensor a tokenizer takes; part of its config, so it travels with the weights."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Preprocess:
    """Resize (antialiased), then centre-crop a `crop` square; None = leave.

    resize: pixels of the shorter side, or (H, W) for both, which does not keep the aspect ratio.
    interpolation: "bicubic" or "bilinear".
    """

    resize: int | Sequence[int] | None = None
    crop: int | None = None
    interpolation: str = "bicubic"

    def __post_init__(self) -> None:
        if isinstance(self.resize, Sequence):
            object.__setattr__(self, "resize", tuple(self.resize))  # YAML and JSON give lists, which have no hash
        for name in ("resize", "crop"):
            given = getattr(self, name)
            sides = given if isinstance(given, tuple) and len(given) == 2 else (given,)
            if given is not None and not all(isinstance(side, int) and side >= 1 for side in sides):
                pair = ", (H, W)" if name == "resize" else ""
                raise ValueError(
                    f"preprocess: expected {name} to be a number of pixels >= 1{pair} or None, got {given!r}"
                )
        if self.interpolation not in ("bicubic", "bilinear"):
            raise ValueError(
                f"preprocess: expected interpolation to be bicubic or bilinear, got {self.interpolation!r}"
            )

    def __repr__(self) -> str:
        # Token stores record this text: it says what is unusual only, so that the usual stays as it was.
        other = "" if self.interpolation == "bicubic" else f", interpolation={self.interpolation!r}"
        return f"Preprocess(resize={self.resize!r}, crop={self.crop!r}{other})"

    def __call__(self, picture: Any) -> Tensor:
        """A PIL image, uint8 array [H, W, 3] or [H, W], or uint8/float tensor [3, H, W] -> float32 [3, H, W] in [0, 1].

        Raises: ValueError naming shape and dtype of anything else.
        """
        return as_float(self.arrange(picture))

    def arrange(self, picture: Any) -> Tensor:
        """The picture resized and cropped, [3, H, W]: uint8 if it came so and nothing resized it, for `as_float`."""
        image = _to_tensor(picture)
        if self.resize is not None:
            size = self._resized(*image.shape[1:])
            pixels = as_float(image)[None]
            resized = torch.nn.functional.interpolate(pixels, size=size, mode=self.interpolation, antialias=True)
            image = resized[0].clamp(0, 1)
        if self.crop is not None:
            height, width = image.shape[1:]
            if min(height, width) < self.crop:
                raise ValueError(f"preprocess: expected sides of at least crop={self.crop}, got {height}x{width}")
            top, left = (height - self.crop) // 2, (width - self.crop) // 2
            image = image[:, top : top + self.crop, left : left + self.crop]
        return image

    def crop_box(self, height: int, width: int) -> tuple[int, int, int, int] | None:
        """Top, left, height and width of what a crop leaves of a picture, in its pixels before any resizing."""
        if self.crop is None:
            return None
        rows, cols = (height, width) if self.resize is None else self._resized(height, width)
        tall, wide = height / rows, width / cols
        top, left = (rows - self.crop) // 2 * tall, (cols - self.crop) // 2 * wide
        return round(top), round(left), round(self.crop * tall), round(self.crop * wide)

    def _resized(self, height: int, width: int) -> tuple[int, int]:
        assert self.resize is not None
        if isinstance(self.resize, Sequence):
            return self.resize[0], self.resize[1]
        scale = self.resize / min(height, width)
        return max(1, round(height * scale)), max(1, round(width * scale))


def as_float(images: Tensor) -> Tensor:
    """Images [..., 3, H, W], one or a batch: uint8 to float32 in [0, 1], float as they are."""
    return images.float().div_(255) if images.dtype == torch.uint8 else images.float()


def _to_tensor(picture: Any) -> Tensor:
    if isinstance(picture, Tensor):
        image = picture
    else:
        array = np.asarray(picture.convert("RGB") if hasattr(picture, "convert") else picture)
        if array.ndim == 2:
            array = np.repeat(array[:, :, None], 3, axis=2)
        image = torch.from_numpy(np.array(array)).permute(2, 0, 1) if array.ndim == 3 else torch.empty(0)
    if image.ndim != 3 or image.shape[0] != 3 or not (image.dtype == torch.uint8 or image.is_floating_point()):
        raise ValueError(
            f"preprocess: expected an RGB picture, uint8 [H, W, 3] or tensor [3, H, W], got {list(image.shape)} "
            f"{image.dtype} from {type(picture).__name__}"
        )
    return image
