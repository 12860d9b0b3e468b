"""A scene as a row of a Hugging Face data set, in Parquet files that carry the data set's features with them.

Written by pyarrow alone: `datasets` reads the features from the schema, and so do its viewer and `vistok encode`.
"""

import io
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from vistok.data.scenes.captions import caption
from vistok.data.scenes.layout import COLORS, SHAPES
from vistok.data.scenes.questions import Question
from vistok.data.scenes.render import Scene
from vistok.data.scenes.splits import split_of

MILLIMETRES = 1000  # depth maps hold metres times this

_PICTURE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
# objects: one list each, as object detection has it; bbox = left, top, width, height in pixels; area in pixels; x, y,
# radius in image sides; depth in metres; rotation in radians. All nearest first.
_OBJECTS = pa.struct(
    [
        ("bbox", pa.list_(pa.list_(pa.int64()))),
        ("category", pa.list_(pa.int64())),
        ("area", pa.list_(pa.int64())),
        *((name, pa.list_(pa.string())) for name in ("shape", "color", "texture", "size", "glyph")),
        *((name, pa.list_(pa.float32())) for name in ("x", "y", "radius", "depth", "rotation")),
    ]
)
_QUESTION = pa.struct([("kind", pa.string()), ("question", pa.string()), ("answer", pa.string())])
_COLUMNS = pa.schema(
    [
        ("seed", pa.int64()),
        ("split", pa.string()),
        ("image", _PICTURE),
        ("depth", _PICTURE),
        ("masks", _PICTURE),
        ("objects", _OBJECTS),
        ("caption", pa.string()),
        ("questions", pa.list_(_QUESTION)),
    ]
)


class Pictures(NamedTuple):
    """The three maps of a scene as PNG files: RGB; 16-bit millimetres; 8-bit, 0 background, i + 1 the i-th object."""

    image: bytes
    depth: bytes
    masks: bytes


def pictures(scene: Scene) -> Pictures:
    """Encode the maps of a scene."""
    depth = np.round(scene.depth * MILLIMETRES).astype(np.uint16)
    return Pictures(_png(scene.image), _png(depth), _png(scene.instances))


def row(scene: Scene, files: Pictures, questions: Sequence[Question], name: str) -> dict[str, Any]:
    """One row; `name` is the file name that the pictures carry."""
    things = scene.layout.things
    left, top, right, bottom = scene.boxes.T
    boxes = np.stack((left, top, right - left, bottom - top), axis=1)
    attributes = ("shape", "color", "texture", "size", "glyph", "x", "y", "radius", "depth", "rotation")
    return {
        "seed": scene.layout.seed,
        "split": split_of(scene.layout.seed),
        **{field: {"bytes": content, "path": name} for field, content in files._asdict().items()},
        "objects": {
            "bbox": boxes.tolist(),
            "category": scene.class_ids.tolist(),
            "area": scene.masks.sum(axis=(1, 2)).tolist(),
            **{attribute: [getattr(thing, attribute) for thing in things] for attribute in attributes},
        },
        "caption": caption(scene.layout),
        "questions": [{"kind": q.kind, "question": q.text, "answer": q.answer} for q in questions],
    }


def parquet(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """The content of a Parquet file; the same rows give the same bytes."""
    schema = _COLUMNS.with_metadata({"huggingface": json.dumps({"info": {"features": _features()}})})
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(list(rows), schema=schema), buffer, compression="zstd", row_group_size=100)
    return buffer.getvalue()


def _features() -> dict[str, Any]:
    features = {field.name: _feature(field.type) for field in _COLUMNS}
    names = [f"{color} {shape}" for color in COLORS for shape in SHAPES]
    features["objects"]["category"] = [{"names": names, "_type": "ClassLabel"}]
    return features


def _feature(kind: pa.DataType) -> Any:
    """A feature of `datasets` as its JSON; a list in brackets is what every version of it reads."""
    if kind == _PICTURE:
        return {"_type": "Image"}
    if pa.types.is_struct(kind):
        return {field.name: _feature(field.type) for field in kind}
    if pa.types.is_list(kind):
        return [_feature(kind.value_type)]
    return {"dtype": "float32" if pa.types.is_float32(kind) else str(kind), "_type": "Value"}


def _png(pixels: NDArray[Any]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()
