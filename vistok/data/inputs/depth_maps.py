"""Depth maps beside pictures, as ids of a depth codec: a column of the store.

A map lies under its picture's name in a folder of its own, as `vistok data scenes --depth` writes them: 16-bit grey in
steps of `unit` metres (ScanNet and NYU: millimetres), or 32-bit floating point metres. N ids of a map.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from PIL import Image

from vistok.data.decode_image import MAX_PIXELS
from vistok.data.inputs.kept import Kept
from vistok.data.strict_pillow import strictly
from vistok.weights import fingerprint

DEPTH_FIELD = pa.field("depth_ids", pa.list_(pa.int32()))
_SUFFIXES = (".png", ".tif", ".tiff")


@dataclass(frozen=True)
class DepthMaps:
    """root: folder of the maps. codec: name of a depth codec that takes metres; checkpoint: weights, if not its own.

    Pickles as its settings; a process makes its codec when it first reads a map.
    """

    root: Path
    codec: str = "depth_nano"
    checkpoint: str | None = None
    unit: float = 0.001
    kept: Kept = field(default_factory=Kept, repr=False, compare=False)
    fields = (DEPTH_FIELD,)
    missing = "pictures without a depth map"

    def __post_init__(self) -> None:
        """Raises: FileNotFoundError if there is no such folder; ValueError for a unit that is no length."""
        if not Path(self.root).is_dir():
            raise FileNotFoundError(f"{self.root}: expected a folder of depth maps")
        if not 0 < self.unit < np.inf:
            raise ValueError(f"depth maps: expected a unit above 0 metres, got {self.unit}")

    @property
    def decoder(self) -> str:
        """What decides the ids beside the maps: codec, its weights, unit."""
        model = self._codec()
        found = fingerprint(model, getattr(model, "_hub_mixin_config", {}))
        return f"depth by {self.codec} {found[:16]} in {self.unit} m"

    def file(self, name: Path) -> Path | None:
        """The map of a picture, by its path below the input; None if there is none."""
        places = [Path(self.root, name).with_suffix(suffix) for suffix in _SUFFIXES]
        return next((path for path in places if path.is_file()), None)

    def values(self, name: Path, file: Path, content: bytes) -> dict[str, Any]:
        """The column of a picture. Raises: as `ids`."""
        return {DEPTH_FIELD.name: self.ids(file)}

    def ids(self, path: Path) -> list[int]:
        """The ids [N] of a map. Raises: ValueError naming the file if it is no depth map of positive metres."""
        metres = read_depth(path, self.unit)
        try:
            with torch.inference_mode():
                tokens = self._codec().encode(torch.from_numpy(metres)[None])
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        found: list[int] = tokens.indices[0].tolist()
        return found

    def _codec(self) -> Any:
        return self.kept.get("codec", self._make_codec)

    def _make_codec(self) -> Any:
        import vistok

        own = self.checkpoint is None
        model: Any = vistok.codec(self.codec, pretrained=own, checkpoint=self.checkpoint)
        if getattr(getattr(model, "range", None), "polarity", None) != "near_low":
            raise ValueError(f"depth maps: expected a codec of metres (polarity near_low), {self.codec} is none")
        return model.eval()


def read_depth(path: Path, unit: float) -> NDArray[np.float32]:
    """Metres [H, W] of a 16-bit grey map, times `unit`, or of a floating-point one as they are.

    Raises: ValueError naming the file if it is too large, damaged or of another kind.
    """
    try:
        with strictly(), Image.open(path, formats=("PNG", "TIFF")) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(f"at most {MAX_PIXELS} pixels, its header says {image.width} x {image.height}")
            if not (image.mode.startswith("I") or image.mode == "F"):
                raise ValueError(
                    f"16-bit grey or 32-bit floating point, got mode {image.mode}; maps of 8 bits tell no metres"
                )
            values = np.asarray(image)
    except Exception as error:  # Pillow raises almost anything on a malformed file
        raise ValueError(f"{path}: expected a depth map, {error}") from error
    return (values if image.mode == "F" else values * unit).astype(np.float32)
