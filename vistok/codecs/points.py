"""Points as two tokens each, in the styles of `boxes`: AURORA's pixels, PaliGemma's (y first) and Florence-2's loc."""

from collections.abc import Sequence

from torch import Tensor

from vistok.codecs._coordinate_codec import CoordinateCodec
from vistok.registry import register


@register
class Points(CoordinateCodec):
    """points [N, 2], x before y, to ids [N, 2] in the style's order and back."""

    shape = (2,)

    def __init__(self, *, style: str = "aurora", bins: int | None = None, rounding: str | None = None) -> None:
        """As of `Boxes`."""
        super().__init__("points", style, bins, rounding)

    def check(self, values: Tensor) -> None:
        """Every pair in 0..1 is a point."""

    def flaw(self, bins: Sequence[int]) -> str:
        """Every pair of bins is a point."""
        return ""
