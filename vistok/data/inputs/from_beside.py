"""What makes columns of a store out of a file beside each picture: depth maps, boxes, masks."""

from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa


class FromBeside(Protocol):
    """Pickles as its settings; opens files and makes its codec when a process first reads one."""

    @property
    def fields(self) -> tuple[pa.Field, ...]:
        """The columns; null for a picture that has no such file."""
        ...

    @property
    def decoder(self) -> str:
        """What decides the values beside the files: codec, its weights, settings."""
        ...

    @property
    def missing(self) -> str:
        """What pictures without such a file are counted as."""
        ...

    def file(self, name: Path) -> Path | None:
        """The file that tells of a picture, by the picture's path below the input; None if there is none."""
        ...

    def values(self, name: Path, file: Path, content: bytes) -> dict[str, Any]:
        """The columns of a picture, of which `content` is the file. Raises: ValueError naming what is wrong."""
        ...
