"""Boxes of the things in a picture as ids of a box codec: columns of the store.

Coordinates are parts of the whole picture, upright, whatever a tokenizer crops of it.
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch

from vistok.data.decode_image import picture_size
from vistok.data.inputs.annotations import Annotated, Annotations, Thing, names_of, read_annotations, things_in
from vistok.data.inputs.entry import Entry, Record
from vistok.data.inputs.files import version_of
from vistok.data.inputs.kept import Kept
from vistok.data.inputs.tables import TableInput

BOX_FIELDS = (
    pa.field("box_ids", pa.list_(pa.list_(pa.int32()))),
    pa.field("box_labels", pa.list_(pa.string())),
)
_SLACK = 1.0  # pixels that a box may reach over the edge: annotation files round
_SHAPE_SLACK = 0.02


@dataclass(frozen=True)
class BoxCodec:
    """name: of a codec of boxes, such as loc1024 or pixel336."""

    name: str = "loc1024"
    kept: Kept = field(default_factory=Kept, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Raises: KeyError for an unknown name; ValueError for a codec of something else."""
        if getattr(self._codec(), "shape", None) != (4,):
            raise ValueError(f"boxes: expected a codec of boxes such as loc1024 or pixel336, got {self.name}")

    @property
    def decoder(self) -> str:
        """What decides the ids."""
        bins = self._codec().bins
        return f"boxes by {self.name} of {bins.count} bins, {bins.rule}"

    def columns(self, annotated: Annotated, content: bytes, name: str) -> dict[str, Any]:
        """The columns of a picture with the file `content`. Raises: ValueError naming it if a box does not fit."""
        size = annotated_size(annotated, content, name)
        try:
            values = torch.tensor([_corners(thing, size) for thing in annotated.things]).reshape(-1, 4)
            ids = self._codec().encode(values).indices.tolist()
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
        return {BOX_FIELDS[0].name: ids, BOX_FIELDS[1].name: names_of(annotated.things)}

    def _codec(self) -> Any:
        return self.kept.get("codec", self._make_codec)

    def _make_codec(self) -> Any:
        import vistok

        return vistok.codec(self.name)


@dataclass(frozen=True)
class BoxLists:
    """Boxes in an annotation file, by the pictures' paths below the input. Null for a picture that it does not list."""

    annotations: Path
    codec: BoxCodec = field(default_factory=BoxCodec)
    kept: Kept = field(default_factory=Kept, repr=False, compare=False)
    fields = BOX_FIELDS
    missing = "pictures without boxes"

    def __post_init__(self) -> None:
        """Raises: OSError, ValueError naming the file if it is no annotation file."""
        annotations_in(self.annotations, self.kept)

    @property
    def decoder(self) -> str:
        """What decides the ids beside the boxes."""
        return self.codec.decoder

    def file(self, name: Path) -> Path | None:
        """The annotation file, if it lists the picture."""
        return self.annotations if name.as_posix() in annotations_in(self.annotations, self.kept) else None

    def values(self, name: Path, file: Path, content: bytes) -> dict[str, Any]:
        """The columns of a picture. Raises: ValueError naming it if a box does not fit it."""
        return self.codec.columns(annotations_in(file, self.kept)[name.as_posix()], content, str(name))


@dataclass(frozen=True)
class BoxColumn:
    """A table, one column of which lists the boxes in each picture, as lines of an annotation file do."""

    table: TableInput
    column: str
    codec: BoxCodec = field(default_factory=BoxCodec)

    @property
    def fields(self) -> pa.Schema:
        """The table's own and those of the boxes. Raises: ValueError if there is no such column."""
        own = self.table.fields
        taken = [box.name for box in BOX_FIELDS if box.name in own.names]
        if self.column not in own.names or taken:
            raise ValueError(
                f"boxes={self.column!r}: expected the name of a column of boxes and none called "
                f"{' or '.join(box.name for box in BOX_FIELDS)}, got {', '.join(own.names) or 'no column'}"
            )
        return pa.schema([*own, *BOX_FIELDS])

    @property
    def decoder(self) -> str:
        """What decides the ids beside the boxes."""
        return self.codec.decoder

    @property
    def left_out(self) -> dict[str, int]:
        """As of the table."""
        return self.table.left_out

    def entries(self) -> list[Entry]:
        """As of the table."""
        return self.table.entries()

    def read(self, entry: Entry) -> Record:
        """One row, with its boxes. Raises: ValueError, OSError as of the table, or if its boxes are none."""
        record = self.table.read(entry)
        objects = record.fields.get(self.column)
        if objects is None:
            return record
        try:
            annotated = Annotated(None, things_in(objects))
        except ValueError as error:
            raise ValueError(f"{entry.key}: column {self.column}: {error}") from error
        columns = self.codec.columns(annotated, record.content, entry.key)
        return Record(record.content, record.caption, record.fields | columns)


def annotations_in(path: Path, kept: Kept) -> Annotations:
    """What an annotation file says, read once while it does not change."""
    return kept.get((path, version_of(path.stat())), lambda: read_annotations(path))


def annotated_size(annotated: Annotated, content: bytes, name: str) -> tuple[int, int]:
    """(H, W) that annotations refer to. Raises: ValueError if the picture has another shape."""
    # Only a header is read here; how many pixels may be decoded is up to who decodes them.
    height, width = picture_size(content, name, max_pixels=sys.maxsize)
    if annotated.size is None:
        return height, width
    there_height, there_width = annotated.size
    # A copy at another scale has the same parts of its sides; a picture on its side has not.
    off = abs(width * there_height - height * there_width)
    if off > _SHAPE_SLACK * width * there_height + max(there_height, there_width):
        raise ValueError(
            f"{name}: expected the picture that was annotated, {there_width} x {there_height}, or a copy of it at "
            f"another scale, got {width} x {height}"
        )
    return annotated.size


def _corners(thing: Thing, size: tuple[int, int]) -> list[float]:
    """x1, y1, x2, y2 in 0..1."""
    if thing.box is None:
        raise ValueError(f"expected a box for every thing, got none for {thing.label!r}")
    left, top, width, height = thing.box
    corners = (left, top, left + width, top + height)
    sides = (size[1], size[0]) * 2
    for corner, side in zip(corners, sides, strict=True):
        if not -_SLACK <= corner <= side + _SLACK:
            raise ValueError(f"expected boxes in the picture of {size[1]} x {size[0]}, got {list(thing.box)}")
    return [min(max(corner / side, 0.0), 1.0) for corner, side in zip(corners, sides, strict=True)]
