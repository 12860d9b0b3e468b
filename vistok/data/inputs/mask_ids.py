"""Masks of the things in a picture as ids of a mask codec: columns of the store.

A map lies under its picture's name in a folder of its own, as `vistok data scenes --masks` writes them: an image of one
channel, 0 the background, every other value a thing. Or an annotation file has polygons or run lengths. N ids a thing.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from PIL import Image

from vistok.data.decode_image import MAX_PIXELS
from vistok.data.inputs.annotations import Annotated, names_of
from vistok.data.inputs.box_ids import annotated_size, annotations_in
from vistok.data.inputs.kept import Kept
from vistok.data.inputs.segmentation import filled
from vistok.data.strict_pillow import strictly
from vistok.weights import fingerprint

MASK_FIELD = pa.field("mask_ids", pa.list_(pa.list_(pa.int32())))
LABEL_FIELD = pa.field("mask_labels", pa.list_(pa.string()))
_SUFFIXES = (".png", ".tif", ".tiff")
_MOST_THINGS = 1000
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class MaskCodec:
    """name: of a codec of masks; checkpoint: weights, if not its own (seg128 has none)."""

    name: str = "seg128"
    checkpoint: str | None = None
    kept: Kept = field(default_factory=Kept, repr=False, compare=False)

    @property
    def decoder(self) -> str:
        """What decides the ids beside the masks. Raises: ValueError without weights, or for a codec of other things."""
        model = self._codec()
        return f"masks by {self.name} {fingerprint(model, getattr(model, '_hub_mixin_config', {}))[:16]}"

    def ids(self, masks: Iterable[Mask], name: str) -> list[list[int]]:
        """The ids of each mask [H, W]. Raises: ValueError naming `name` if one has nothing in it."""
        try:
            with torch.inference_mode():
                # One by one: a hundred things in a large picture are a hundred large masks.
                return [self._codec().encode(torch.from_numpy(mask)[None]).indices[0].tolist() for mask in masks]
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error

    def _codec(self) -> Any:
        return self.kept.get("codec", self._make_codec)

    def _make_codec(self) -> Any:
        import vistok

        config = vistok.info("codec", self.name)
        if config.method != "masks":
            raise ValueError(f"masks: expected a codec of masks such as seg128, got {self.name}")
        if self.checkpoint is None and config.weights is None:
            raise ValueError(f"codec {self.name!r} has no pretrained weights; give some with --mask-checkpoint")
        model: Any = vistok.codec(self.name, pretrained=self.checkpoint is None, checkpoint=self.checkpoint)
        return model.eval()


@dataclass(frozen=True)
class MaskMaps:
    """root: folder of the maps. Null for a picture without one."""

    root: Path
    codec: MaskCodec = field(default_factory=MaskCodec)
    fields = (MASK_FIELD,)
    missing = "pictures without a map of masks"

    def __post_init__(self) -> None:
        """Raises: FileNotFoundError if there is no such folder; ValueError as of the codec."""
        if not Path(self.root).is_dir():
            raise FileNotFoundError(f"{self.root}: expected a folder of maps of masks")
        _ = self.codec.decoder

    @property
    def decoder(self) -> str:
        """What decides the ids beside the maps."""
        return self.codec.decoder

    def file(self, name: Path) -> Path | None:
        """The map of a picture, by its path below the input; None if there is none."""
        places = [Path(self.root, name).with_suffix(suffix) for suffix in _SUFFIXES]
        return next((path for path in places if path.is_file()), None)

    def values(self, name: Path, file: Path, content: bytes) -> dict[str, Any]:
        """The ids of each thing, in the order of its value in the map.

        Raises: ValueError naming the file, or the picture if the map has another shape.
        """
        instances = read_instances(file)
        height, width = instances.shape
        annotated_size(Annotated((height, width), ()), content, str(name))
        found = np.unique(instances[instances != 0]).tolist()
        if len(found) > _MOST_THINGS:
            raise ValueError(f"{file}: expected at most {_MOST_THINGS} things, got {len(found)} values; is it a map?")
        return {MASK_FIELD.name: self.codec.ids((instances == value for value in found), str(file))}


@dataclass(frozen=True)
class MaskLists:
    """Masks in an annotation file, by the pictures' paths below the input. Null for a picture that it does not list."""

    annotations: Path
    codec: MaskCodec = field(default_factory=MaskCodec)
    kept: Kept = field(default_factory=Kept, repr=False, compare=False)
    fields = (MASK_FIELD, LABEL_FIELD)
    missing = "pictures without masks"

    def __post_init__(self) -> None:
        """Raises: OSError, ValueError naming the file if it is no annotation file; as of the codec."""
        annotations_in(self.annotations, self.kept)
        _ = self.codec.decoder

    @property
    def decoder(self) -> str:
        """What decides the ids beside the masks."""
        return self.codec.decoder

    def file(self, name: Path) -> Path | None:
        """The annotation file, if it lists the picture."""
        return self.annotations if name.as_posix() in annotations_in(self.annotations, self.kept) else None

    def values(self, name: Path, file: Path, content: bytes) -> dict[str, Any]:
        """The ids and label of each thing. Raises: ValueError naming the picture."""
        annotated = annotations_in(file, self.kept)[name.as_posix()]
        size = annotated_size(annotated, content, str(name))
        if size[0] * size[1] > MAX_PIXELS:
            raise ValueError(f"{name}: expected masks of at most {MAX_PIXELS} pixels, got {size[1]} x {size[0]}")
        masks = (filled(thing.segmentation, size) for thing in annotated.things)
        return {MASK_FIELD.name: self.codec.ids(masks, str(name)), LABEL_FIELD.name: names_of(annotated.things)}


def read_instances(path: Path) -> NDArray[Any]:
    """The values [H, W] of a map of one channel; of a palette its indices.

    Raises: ValueError naming the file if it is too large, damaged or of another kind.
    """
    try:
        with strictly(), Image.open(path, formats=("PNG", "TIFF")) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(f"at most {MAX_PIXELS} pixels, its header says {image.width} x {image.height}")
            if not (image.mode in ("1", "L", "P") or image.mode.startswith("I")):
                raise ValueError(f"one channel of integers, got mode {image.mode}")
            return np.asarray(image)
    except Exception as error:  # Pillow raises almost anything on a malformed file
        raise ValueError(f"{path}: expected a map of masks, {error}") from error
