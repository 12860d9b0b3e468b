"""Quadrilaterals around text, as Florence-2 (arXiv:2311.06242) writes them in OCR: eight loc tokens x1 y1 .. x4 y4.

The text that was read stands before them, as the label.
"""

from collections.abc import Sequence

from torch import Tensor

from vistok.codecs._coordinate_codec import CoordinateCodec
from vistok.registry import register


@register
class Quads(CoordinateCodec):
    """corners [N, 4, 2], x before y, to ids [N, 8] and back."""

    shape = (4, 2)

    def __init__(self, *, style: str = "florence", bins: int | None = None, rounding: str | None = None) -> None:
        """As of `Boxes`."""
        super().__init__("quads", style, bins, rounding)

    def check(self, values: Tensor) -> None:
        """Any four corners will do: writing may be slanted either way."""

    def flaw(self, bins: Sequence[int]) -> str:
        """Any four corners will do."""
        return ""
