"""The square that a model sees of a picture, and where boxes and points lie in it and in the picture.

squash: both sides scaled to S. pad: the picture in the middle of a square of its longer side, as LLaVA does. crop: the
middle square of its shorter side, as CLIP does. In all three the square is then S x S pixels. Coordinates are parts of
the sides, in 0..1; size is (H, W) of the picture.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

MODES = ("squash", "pad", "crop")


@dataclass(frozen=True)
class BoxFrame:
    """mode: of MODES; size: S. Raises: ValueError for an unknown mode or a size below 1."""

    mode: str = "squash"
    size: int = 336

    def __post_init__(self) -> None:
        if self.mode not in MODES or self.size < 1:
            raise ValueError(f"BoxFrame: expected mode in {MODES} and size >= 1, got {self.mode!r} and {self.size}")

    def of(self, coordinates: Tensor, size: tuple[int, int]) -> Tensor:
        """coordinates [..., 2k] as x, y, x, y .. of a picture -> of the square, clamped to it.

        A crop cuts boxes at its edges; of one that lies outside a line or a corner is left.
        """
        scale, shift = self._move(coordinates, size)
        return (coordinates * scale + shift).clamp(0, 1)

    def back(self, coordinates: Tensor, size: tuple[int, int]) -> Tensor:
        """coordinates [..., 2k] of the square -> of the picture, clamped to it; padding becomes its edge."""
        scale, shift = self._move(coordinates, size)
        return ((coordinates - shift) / scale).clamp(0, 1)

    def picture(self, images: Tensor, fill: float = 0.0, mode: str = "bilinear") -> Tensor:
        """images [B, C, H, W] float -> what the model sees [B, C, S, S]; fill: of the padding.

        mode: of the resize; "nearest" takes the pixel whose centre is nearest, as Pillow does, others are antialiased.
        """
        height, width = images.shape[-2:]
        if self.mode == "pad":
            longer = max(height, width)
            top, left = (longer - height) // 2, (longer - width) // 2
            images = F.pad(images, (left, longer - width - left, top, longer - height - top), value=fill)
        elif self.mode == "crop":
            shorter = min(height, width)
            top, left = (height - shorter) // 2, (width - shorter) // 2
            images = images[..., top : top + shorter, left : left + shorter]
        if mode == "nearest":
            return F.interpolate(images, (self.size, self.size), mode="nearest-exact")
        return F.interpolate(images, (self.size, self.size), mode=mode, antialias=True)

    def _move(self, like: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """scale, shift [2k]: square = picture * scale + shift. Offsets are whole pixels, as those of `picture`."""
        height, width = size
        if height < 1 or width < 1 or like.shape[-1] % 2 or not like.is_floating_point():
            raise ValueError(
                f"BoxFrame: expected pairs x, y, float in 0..1, and a size (H, W) of 1 pixel or more, got "
                f"{list(like.shape)} {like.dtype} and {size}"
            )
        sides, offsets = [1.0, 1.0], [0.0, 0.0]
        if self.mode != "squash":
            square = max(size) if self.mode == "pad" else min(size)
            sides = [width / square, height / square]
            # Floor division of negative numbers would round the crop's offset to the other side than `picture` does.
            offsets = [
                (square - side) // 2 / square if side <= square else -((side - square) // 2) / square
                for side in (width, height)
            ]
        repeat = like.shape[-1] // 2
        moves = torch.tensor([sides, offsets], dtype=like.dtype, device=like.device).repeat(1, repeat)
        return moves[0], moves[1]
