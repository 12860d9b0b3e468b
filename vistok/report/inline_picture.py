"""Pictures as data URIs, small enough to stand in a page by the dozen."""

import base64
import io
from dataclasses import dataclass

from PIL import Image

_SIDE = 640
_EXACT = 256 * 256
_SMALL = 160


@dataclass(frozen=True)
class InlinePicture:
    """A picture inside the page, and its size in pixels there."""

    uri: str
    width: int
    height: int

    @property
    def small(self) -> bool:
        """Whether its pixels are to be seen as squares where it is enlarged."""
        return max(self.width, self.height) <= _SMALL


def inline_picture(picture: Image.Image) -> InlinePicture:
    """An RGB picture as WebP: pixel by pixel up to 256x256 pixels, else at quality 90, the longer side at most 640."""
    scale = min(1.0, _SIDE / max(picture.size))
    if scale < 1:
        size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
        picture = picture.resize(size, Image.Resampling.LANCZOS)
    file = io.BytesIO()
    exact = picture.width * picture.height <= _EXACT
    picture.save(file, "WEBP", lossless=exact, quality=75 if exact else 90, method=4)
    return InlinePicture(_uri("webp", file.getvalue()), picture.width, picture.height)


def inline_cells(cells: Image.Image) -> str:
    """A picture of a few cells, RGB or RGBA, as the data URI of a PNG."""
    file = io.BytesIO()
    cells.save(file, "PNG", optimize=True)
    return _uri("png", file.getvalue())


def _uri(kind: str, content: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
