"""Boxes as tokens: AURORA's pixels (arXiv:2412.03548), PaliGemma's (arXiv:2407.07726) and Florence-2's loc tokens
(arXiv:2311.06242).

A box is (x1, y1, x2, y2) in 0..1 with x1 <= x2 and y1 <= y2. What becomes of a picture that is not square, before the
model sees it, is `BoxFrame`'s matter: encode `frame.of(boxes, size)`, and `frame.back` what was decoded.
"""

from collections.abc import Sequence

from torch import Tensor

from vistok.codecs._coordinate_codec import CoordinateCodec
from vistok.registry import register


@register
class Boxes(CoordinateCodec):
    """boxes [N, 4] to ids [N, 4] in the style's order and back."""

    shape = (4,)

    def __init__(self, *, style: str = "aurora", bins: int | None = None, rounding: str | None = None) -> None:
        """style: "aurora", "paligemma" or "florence"; bins, rounding: if others than the style's.

        How AURORA rounded its boxes is not published: "round" is the default, "floor" the other reading, which has
        half the error at the right and lower edge. Raises: ValueError for an unknown style or rule.
        """
        super().__init__("boxes", style, bins, rounding)

    def check(self, values: Tensor) -> None:
        """Raise ValueError naming the first box whose corners are in the wrong order."""
        wrong = ((values[:, 2] < values[:, 0]) | (values[:, 3] < values[:, 1])).nonzero()[:, 0].tolist()
        if wrong:
            raise ValueError(
                f"{self.name}: expected x1 <= x2 and y1 <= y2, got {values[wrong[0]].tolist()} at place {wrong[0]}"
            )

    def flaw(self, bins: Sequence[int]) -> str:
        """Why four bins are no box: its corners are in the wrong order."""
        first, second, third, fourth = bins
        return "" if first <= third and second <= fourth else f"expected two corners in order, got bins {list(bins)}"
