"""Rows of a token store: what is known of each sample beside its tokens."""

from collections.abc import Iterator, Sequence
from operator import index as as_int
from typing import TYPE_CHECKING, Any, overload

import pyarrow as pa

if TYPE_CHECKING:
    from vistok.data.store import TokenStore


class SampleRows(Sequence[dict[str, Any]]):
    """One dict per sample, made when it is asked for out of the Arrow table of its shard, which is then kept."""

    def __init__(self, store: "TokenStore") -> None:
        self._store = store
        self._tables: list[pa.Table | None] = [None] * len(store.ends)

    def table(self, slot: int) -> pa.Table:
        """The rows of the shard at this place in `store.shards`."""
        table = self._tables[slot]
        if table is None:
            table = self._tables[slot] = self._store.read_rows(slot)
        return table

    def __len__(self) -> int:
        return len(self._store)

    @overload
    def __getitem__(self, index: int) -> dict[str, Any]: ...
    @overload
    def __getitem__(self, index: slice) -> list[dict[str, Any]]: ...
    def __getitem__(self, index: int | slice) -> dict[str, Any] | list[dict[str, Any]]:
        """Raises: IndexError."""
        if isinstance(index, slice):
            return [self[at] for at in range(*index.indices(len(self)))]
        [(slot, row)] = self._store.places([as_int(index)])
        table = self.table(slot)
        return {name: table[name][row].as_py() for name in table.column_names}

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for slot in range(len(self._tables)):
            yield from self.table(slot).to_pylist()

    def __repr__(self) -> str:
        return f"SampleRows({len(self)} of {self._store.location})"
