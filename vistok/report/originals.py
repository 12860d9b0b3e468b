"""The pictures that a store was made from, found again by key and known again by the digest of their bytes."""

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from vistok.data.decode_image import decode_image
from vistok.data.inputs.open import open_input
from vistok.layers.preprocess import as_float


class Originals:
    """Pictures of an input by key."""

    def __init__(self, source: str) -> None:
        """source: what `vistok encode` was given. Raises: as `open_input`, OSError."""
        self.source = source
        self._input = open_input(source)
        self._entries = {entry.key: entry for entry in self._input.entries()}

    def read(self, row: dict[str, Any], preprocess: Callable[[Any], Tensor]) -> Tensor | None:
        """The picture of a store's row as its tokenizer saw it, [3, H, W] in [0, 1]; None if it is not there.

        Raises: ValueError if what has its key is another picture, or cannot be read; OSError.
        """
        entry = self._entries.get(row["key"])
        if entry is None:
            return None
        content = self._input.read(entry).content
        if hashlib.sha256(content).hexdigest()[:32] != row["digest"]:
            raise ValueError(f"{self.source}: {row['key']} is not the picture that was encoded")
        return as_float(preprocess(decode_image(content, row["key"])))


def not_found(keys: Sequence[str], source: str) -> str:
    """A sentence about originals that are missing, empty if none is."""
    if not keys:
        return ""
    named = ", ".join(keys[:3]) + (" ..." if len(keys) > 3 else "")
    return f"{len(keys)} originals are not in {source}: {named}."
