"""Which columns of a table are the picture, its caption and its key, and what the others are called in a store."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from pyarrow import types

from vistok.data.inputs.captions import CAPTION_NAMES
from vistok.data.inputs.entry import Record

IMAGE_NAMES = ("image", "img", "jpg", "jpeg", "png", "webp", "picture", "photo", "image_bytes", "bytes", "content")
# Columns that a store has of its own: the user's are carried as input_<name>.
STORE_NAMES = frozenset(
    ("key", "source", "source_offset", "width", "height", "crop", "image_size", "grid", "n_tokens", "caption", "digest")
)


@dataclass(frozen=True)
class Cells:
    """What the column of pictures holds. fits: its types, expected: these in words; names: usual ones, the best first.

    content: a value and the column's name -> bytes. carried: whether the store keeps the column as one of the user's.
    """

    fits: Callable[[pa.DataType], bool]
    expected: str
    names: tuple[str, ...]
    content: Callable[[Any, str], bytes]
    carried: bool


@dataclass(frozen=True)
class Columns:
    """image, caption, key: columns by name. carried: name in the store -> name in the table; fields: their schema.

    left_out: columns with bytes in them that are not the picture.
    """

    image: str
    caption: str | None
    key: str | None
    carried: dict[str, str]
    fields: pa.Schema
    left_out: tuple[str, ...]

    @property
    def needed(self) -> list[str]:
        """The columns that a record is made of."""
        return [*dict.fromkeys(name for name in (self.image, self.caption, *self.carried.values()) if name)]


def find_columns(
    schema: pa.Schema,
    *,
    image: str | None = None,
    caption: str | None = None,
    key: str | None = None,
    cells: Cells | None = None,
) -> Columns:
    """Choose columns by type and name; a column that is given is taken. cells: of the image column, None = EMBEDDED.

    Raises: ValueError if one is not there or of the wrong type, or if the picture cannot be told.
    """
    kinds = dict(zip(schema.names, schema.types, strict=True))
    if len(kinds) < len(schema.names):
        raise ValueError(f"expected columns of different names, got {', '.join(schema.names)}")
    cells = cells or EMBEDDED
    image = _given("image", image, kinds, cells.fits, cells.expected) or _image_column(kinds, cells)
    captions = [name for name in CAPTION_NAMES if name in kinds and name != image and _is_text(kinds[name])]
    caption = _given("caption", caption, kinds, _is_text, "text") or next(iter(captions), None)
    key = _given("key", key, kinds, _is_key, "text or integers")
    taken = {caption, key} | (set() if cells.carried else {image})
    others = [name for name in schema.names if name not in taken]
    left_out = tuple(name for name in others if _holds_bytes(kinds[name]))
    carried: dict[str, str] = {}
    for name in (name for name in others if name not in left_out):
        stored = f"input_{name}" if name in STORE_NAMES else name
        while stored in carried or (stored != name and stored in kinds):
            stored = f"input_{stored}"
        carried[stored] = name
    fields = pa.schema([(stored, kinds[name]) for stored, name in carried.items()])
    return Columns(image, caption, key, carried, fields, left_out)


def record_in(batch: pa.RecordBatch, row: int, columns: Columns, cells: Cells | None = None) -> Record:
    """One row. Raises: ValueError if it has no picture."""

    def value(name: str) -> Any:
        return batch.column(name)[row].as_py()

    caption = value(columns.caption) if columns.caption else None
    fields = {stored: value(name) for stored, name in columns.carried.items()}
    return Record((cells or EMBEDDED).content(value(columns.image), columns.image), caption, fields)


def _content(value: Any, name: str) -> bytes:
    path = value.get("path") if isinstance(value, dict) else None
    content = value.get("bytes") if isinstance(value, dict) else value
    if content is None and path:
        raise ValueError(
            f"column {name}: expected the bytes of the picture, got its path {path!r} alone; embed the bytes in the "
            "table (`Dataset.save_to_disk` of Hugging Face does)"
        )
    if content is None:
        raise ValueError(f"column {name}: expected a picture, got null")
    return bytes(content)


def _url(value: Any, name: str) -> bytes:
    if not value:
        raise ValueError(f"column {name}: expected a URL, got none")
    return str(value).encode()


def _given(option: str, name: str | None, kinds: dict[str, pa.DataType], fits: Any, expected: str) -> str | None:
    if name is None:
        return None
    if name not in kinds:
        raise ValueError(f"{option}={name!r}: there is no such column; there are {', '.join(kinds)}")
    if not fits(kinds[name]):
        raise ValueError(f"{option}={name!r}: expected a column of {expected}, got {kinds[name]}")
    return name


def _image_column(kinds: dict[str, pa.DataType], cells: Cells) -> str:
    candidates = [name for name, kind in kinds.items() if cells.fits(kind)]
    structs = [name for name in candidates if types.is_struct(kinds[name])]
    for names in (structs, candidates):
        known = [name for name in cells.names if name in names]
        if known or len(names) == 1:
            return (known or names)[0]
    listed = ", ".join(f"{name} ({kind})" for name, kind in kinds.items())
    if candidates:
        raise ValueError(f"expected one column of pictures, got {', '.join(candidates)}; say which by image=")
    raise ValueError(f"expected a column of pictures ({cells.expected}), got {listed}")


def _is_bytes(kind: pa.DataType) -> bool:
    return bool(types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind))


def _is_image(kind: pa.DataType) -> bool:
    if types.is_struct(kind):
        return any(kind.field(number).name == "bytes" and _is_bytes(kind.field(number).type) for number in _range(kind))
    return _is_bytes(kind)


def _is_text(kind: pa.DataType) -> bool:
    return bool(types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind))


def _is_key(kind: pa.DataType) -> bool:
    return _is_text(kind) or types.is_integer(kind)


def _holds_bytes(kind: pa.DataType) -> bool:
    return _is_bytes(kind) or any(_holds_bytes(inner) for inner in _inner(kind))


def _inner(kind: pa.DataType) -> Iterator[pa.DataType]:
    if types.is_dictionary(kind):
        yield kind.value_type
    for number in _range(kind):
        yield kind.field(number).type


def _range(kind: pa.DataType) -> range:
    return range(kind.num_fields)


EMBEDDED = Cells(_is_image, "bytes, or a struct of bytes and path", IMAGE_NAMES, _content, carried=False)
URLS = Cells(_is_text, "text: URLs", ("url", "URL", "image_url", "img_url", "link"), _url, carried=True)
