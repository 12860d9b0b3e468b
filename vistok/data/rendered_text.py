"""Text as pictures, for tokenizers that see and not spell (Pixel Sentence Representation Learning, arXiv:2402.08183).

Black on white, one line: the same bytes for the same text, font, Pillow and FreeType. Pillow's own font needs no file
and draws 111 characters: printable ASCII and « » ‹ › ‘ ’ “ ” … ™ © ° ± ´ · ⁄; not é, and no other script. All else
needs a font file of yours. What tokenizers make of such pictures under typos: `vistok.metrics.typo_similarity`. B
texts, H x W pixels.
"""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

_NEVER_DRAWN = "\uffff"  # Unicode promises that this is no character, so that fonts draw their sign for "none such"


class TextRenderer:
    """One font at one size."""

    def __init__(self, size: int = 16, font: str | Path | None = None) -> None:
        """size: of the font in pixels. font: a TrueType or OpenType file, None: the one that Pillow brings.

        Raises: ValueError for a size below 4; FileNotFoundError for a file that is no font.
        """
        if size < 4:
            raise ValueError(f"text: expected a font size of at least 4 pixels, got {size}")
        self.size = size
        self.named = "Pillow's own font" if font is None else str(font)
        try:
            # The basic layout draws the same with and without the library for complex scripts.
            self._font = (
                _own_font(size)
                if font is None
                else ImageFont.truetype(str(font), size, layout_engine=ImageFont.Layout.BASIC)
            )
        except OSError as error:
            raise FileNotFoundError(f"{font}: expected a TrueType or OpenType font file, got: {error}") from error

    @property
    def height(self) -> int:
        """Pixels from the highest to the lowest place of any letter."""
        ascent, descent = self._font.getmetrics()
        return ascent + descent

    def width(self, text: str) -> int:
        """Pixels that a text takes, at least 1."""
        return max(1, -(-int(self._font.getlength(text) * 64) // 64))

    def missing(self, text: str) -> str:
        """The characters of a text that the font does not have, each once, in the order in which they come."""
        found = (character for character in dict.fromkeys(text) if not character.isspace())
        return "".join(character for character in found if self._drawn(character) == self._none)

    def render(self, texts: Sequence[str], *, height: int | None = None, width: int | None = None) -> Tensor:
        """[B, 3, H, W] float32 in [0, 1], each text at the left, its line in the middle; white to its right and around.

        height, width: in pixels; None is the line's, and the longest text's. Raises: ValueError for no texts, a line
        break, characters that the font does not have, or texts that do not fit.
        """
        if isinstance(texts, str) or not texts:
            raise ValueError(f"text: expected a list of at least one text, got {texts!r}")
        for text in texts:
            lost = self.missing(text)
            if lost or len(text.splitlines()) > 1:
                raise ValueError(
                    f"text: expected one line of characters that {self.named} has, got {text!r}"
                    + (f" with {lost!r}; give font= a file that has them" if lost else "")
                )
        height = self.height if height is None else height
        longest = max(texts, key=self.width)
        width = self.width(longest) if width is None else width
        if height < self.height or width < self.width(longest):
            raise ValueError(
                f"text: expected at least {self.height} x {self.width(longest)} pixels for {longest!r} at size "
                f"{self.size}, got {height} x {width}"
            )
        return torch.stack([self.picture(text, height, width) for text in texts])[:, None].expand(-1, 3, -1, -1) / 255

    def picture(self, text: str, height: int, width: int) -> Tensor:
        """[H, W] uint8, 255 is paper; what does not fit is cut off, what the font lacks gets its sign for that."""
        page = Image.new("L", (width, height), 255)
        ImageDraw.Draw(page).text((0, (height - self.height) // 2), text, fill=0, font=self._font)
        return torch.from_numpy(np.array(page))

    @cached_property
    def _none(self) -> bytes:
        return self._drawn(_NEVER_DRAWN)

    def _drawn(self, character: str) -> bytes:
        return bytes(self._font.getmask(character))


def _own_font(size: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size)
    if not isinstance(font, ImageFont.FreeTypeFont):
        raise OSError("this Pillow was built without FreeType; install the wheel from PyPI, or give font= a file")
    return font
