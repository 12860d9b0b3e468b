"""What every kind of input offers an encode plan: a list of pictures that does not change, and the bytes of each."""

from dataclasses import dataclass, field
from typing import Any, Protocol

import pyarrow as pa


@dataclass(frozen=True, slots=True)
class Entry:
    """One picture of an input.

    key: unique in the input. source: file that holds it, as a path below the input; offset: where in it (byte of a tar
    member, row of a table, 0 for a file of its own). size: bytes of the picture, -1 if only reading tells. version: a
    number below 2**63 that changes when the file does, or one that its caption comes from. problem: why it can never
    be read, found while listing; "" = none.
    """

    key: str
    source: str
    offset: int = 0
    size: int = -1
    version: int = 0
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Record:
    """What reading an entry gives: the picture's file content, its caption, and the values of the input's fields.

    A field that is not named is null.
    """

    content: bytes
    caption: str | None = None
    fields: dict[str, Any] = field(default_factory=dict)


class Input(Protocol):
    """A place that pictures come from. Pickles as its paths; opens its files when a process first reads."""

    @property
    def fields(self) -> pa.Schema:
        """Columns of the user's that are carried into the store, besides the caption.

        Costs a listing in a process that has not listed the entries.
        """
        ...

    @property
    def left_out(self) -> dict[str, int]:
        """What is in the input and is not carried along: name (a column, a file suffix) -> how often."""
        ...

    def entries(self) -> list[Entry]:
        """Every picture, sorted by (source, offset); the same input gives the same list.

        Raises: ValueError, OSError if the input as a whole cannot be listed.
        """
        ...

    def read(self, entry: Entry) -> Record:
        """One picture; may be called by several threads.

        Raises: ValueError, OSError if it cannot be read or has changed since it was listed.
        """
        ...
