"""Things in pictures as annotation files list them: COCO's JSON, or a line of JSON for each picture.

COCO: https://cocodataset.org/#format-data. Lines: {"file_name": .., "objects": {"bbox": [[left, top, width, height],
..], "category": [..]}}, as ImageFolder of Hugging Face has them; `objects` may as well be a list of {"bbox": ..,
"category": ..}. All in pixels.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from math import isfinite
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

LABELS = ("category", "categories", "label", "labels")
_SIZE = ("width", "height")


class Thing(NamedTuple):
    """box: (left, top, width, height) in pixels, None if the file gives none. segmentation: as COCO has it, or None."""

    label: str
    box: tuple[float, float, float, float] | None
    segmentation: Any


class Annotated(NamedTuple):
    """What a file says of a picture. size: (H, W) that its pixels refer to, None if the file does not say."""

    size: tuple[int, int] | None
    things: tuple[Thing, ...]


Annotations = dict[str, Annotated]  # by the picture's path, as the file spells it


def read_annotations(path: Path) -> Annotations:
    """Raises: OSError; ValueError naming the file and what is wrong in it."""
    reader: Callable[[str], Annotations] = _from_lines if path.suffix == ".jsonl" else _from_coco
    try:
        return reader(path.read_bytes().decode("utf-8-sig"))
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise ValueError(f"{path}: {error}") from error


def things_in(objects: Any) -> tuple[Thing, ...]:
    """Of a struct of lists, or a list of structs. Raises: ValueError if it is neither, or a box is none."""
    if isinstance(objects, Mapping):
        objects = _rows(objects)
    if not isinstance(objects, Sequence) or not all(isinstance(one, Mapping) for one in objects):
        raise ValueError(f"expected things as a list, or as lists of bbox and category, got {objects!r:.80}")
    return tuple(_thing(one, _label(one)) for one in objects)


def _rows(objects: Mapping[str, Any]) -> list[dict[str, Any]]:
    wanted = {name: objects[name] for name in ("bbox", "segmentation", *LABELS) if objects.get(name) is not None}
    lengths = {len(column) for column in wanted.values() if isinstance(column, Sequence)}
    if not wanted or len(lengths) != 1 or any(not isinstance(column, Sequence) for column in wanted.values()):
        raise ValueError(f"expected lists of one length for bbox and category, got {objects!r:.80}")
    return [dict(zip(wanted, row, strict=True)) for row in zip(*wanted.values(), strict=True)]


def _label(thing: Mapping[str, Any]) -> str:
    return next((str(thing[name]) for name in LABELS if thing.get(name) is not None), "")


def _thing(thing: Mapping[str, Any], label: str) -> Thing:
    box = thing.get("bbox")
    if box is not None:
        numbers = isinstance(box, Sequence) and all(isinstance(one, int | float) for one in box)
        if not numbers or len(box) != 4 or not all(map(isfinite, box)) or min(box[2:]) < 0:
            raise ValueError(f"expected bbox as left, top, width, height in pixels, got {box!r:.80}")
    return Thing(label, None if box is None else tuple(map(float, box)), thing.get("segmentation"))  # type: ignore[arg-type]


def _from_lines(text: str) -> Annotations:
    found: Annotations = {}
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            if not isinstance(row, dict) or not isinstance(row.get("file_name"), str) or "objects" not in row:
                raise ValueError(f"expected an object with file_name and objects, got {line[:80]!r}")
            _add(found, row["file_name"], Annotated(_size(row), things_in(row["objects"])))
        except ValueError as error:
            raise ValueError(f"line {number}: {error}") from error
    return found


def _from_coco(text: str) -> Annotations:
    content = json.loads(text)
    images, annotations, categories = (
        _list(content, name) if name != "categories" or name in content else []
        for name in ("images", "annotations", "categories")
    )
    labels = {one.get("id"): str(one.get("name", one.get("id"))) for one in categories}
    ids = [one.get("id") for one in images]
    if not all(isinstance(one, int | str) for one in ids) or len({*ids}) < len(ids):
        raise ValueError("expected images with an id each, a number or text, and no two with the same")
    things: dict[Any, list[Thing]] = {one: [] for one in ids}
    for number, one in enumerate(annotations):
        if one.get("image_id") not in things:
            raise ValueError(f"annotation {number}: expected the id of an image, got {one.get('image_id')!r}")
        category = one.get("category_id")
        try:
            things[one["image_id"]].append(_thing(one, labels.get(category, "" if category is None else str(category))))
        except ValueError as error:
            raise ValueError(f"annotation {number}: {error}") from error
    found: Annotations = {}
    for one in images:
        if not isinstance(one.get("file_name"), str):
            raise ValueError(f"expected images with a file_name, got {one!r:.80}")
        _add(found, one["file_name"], Annotated(_size(one), tuple(things[one.get("id")])))
    return found


def _list(content: Any, name: str) -> list[dict[str, Any]]:
    value = content.get(name) if isinstance(content, dict) else None
    if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
        raise ValueError(f"expected COCO's JSON, an object with the lists images and annotations, got no list {name}")
    return value


def _size(row: Mapping[str, Any]) -> tuple[int, int] | None:
    width, height = (row.get(name) for name in _SIZE)
    if width is None or height is None:
        return None
    if type(width) is not int or type(height) is not int or min(width, height) < 1:
        raise ValueError(f"expected a width and height in pixels, got {width!r} and {height!r}")
    return height, width


def _add(found: Annotations, file_name: str, annotated: Annotated) -> None:
    name = PurePosixPath(file_name).as_posix()
    if name in found:
        raise ValueError(f"{name} is there twice")
    found[name] = annotated


def names_of(things: Iterable[Thing]) -> list[str]:
    """The labels."""
    return [thing.label for thing in things]
