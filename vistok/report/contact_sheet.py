"""A contact sheet: one column per picture, the original above what became of it, both labelled, as one PNG."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

_FONT_SIZE = 22
_MARGIN = 16
_LINE = 30
_INK, _PAPER = (20, 20, 20), (250, 250, 250)


@dataclass(frozen=True)
class Column:
    """Two pictures of one size, one above the other, each under its label."""

    original: Image.Image
    reconstruction: Image.Image
    label: str
    reconstruction_label: str


def contact_sheet(columns: Sequence[Column], *, side: int = 512) -> Image.Image:
    """The sheet; pictures whose longer side exceeds `side` px are reduced, smaller ones keep their pixels.

    Raises: ValueError if there are no columns or a pair differs in size.
    """
    if not columns:
        raise ValueError("contact_sheet: expected at least one column, got none")
    font = ImageFont.load_default(size=_FONT_SIZE)
    pairs = [_reduced(column, side) for column in columns]
    widths = [
        max(above.width, *(round(font.getlength(text)) for text in (column.label, column.reconstruction_label)))
        for column, (above, _) in zip(columns, pairs, strict=True)
    ]
    height = max(above.height for above, _ in pairs)
    row = _LINE + height + _MARGIN
    sheet = Image.new("RGB", (sum(widths) + _MARGIN * (len(columns) + 1), 2 * row + _MARGIN), _PAPER)
    draw = ImageDraw.Draw(sheet)
    left = _MARGIN
    for column, pair, width in zip(columns, pairs, widths, strict=True):
        labels = (column.label, column.reconstruction_label)
        for top, picture, label in zip((_MARGIN, _MARGIN + row), pair, labels, strict=True):
            draw.text((left, top), label, fill=_INK, font=font)
            sheet.paste(picture, (left, top + _LINE))
        left += width + _MARGIN
    return sheet


def write_png(image: Image.Image, path: str | Path) -> None:
    """Write a picture as PNG, whole or not at all; parent folders are made."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.tmp.{os.getpid()}")
    with open(partial, "wb") as file:
        image.save(file, "PNG")
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def _reduced(column: Column, side: int) -> tuple[Image.Image, Image.Image]:
    size = column.original.size
    if column.reconstruction.size != size:
        raise ValueError(
            f"contact_sheet: expected the reconstruction of {column.label!r} to be {size}, "
            f"got {column.reconstruction.size}"
        )
    scale = min(1.0, side / max(size))
    small = (max(1, round(size[0] * scale)), max(1, round(size[1] * scale)))
    above, below = (
        picture if small == size else picture.resize(small, Image.Resampling.LANCZOS)
        for picture in (column.original, column.reconstruction)
    )
    return above, below
