"""Pictures in Parquet files, read a few rows at a time: a row group may be larger than the memory, a page may not."""

from bisect import bisect_right
from collections import deque
from collections.abc import Iterator
from itertools import accumulate
from threading import Lock
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from vistok.data.inputs.ranged import FileList, Place, RemoteFile, size_at
from vistok.data.inputs.tables import TableInput

_ROWS = 16  # decoded at once
_BATCHES = 3  # held, for readers that are out of step
_ROWS_IN_SMALL_FILE = 1_000_000  # runs of equal values take no space, but a footer may claim anything


class ParquetTable:
    """One file, read forward: rows near the last one asked for cost no second decoding. May be shared by threads."""

    def __init__(self, place: Place) -> None:
        """Raises: ValueError, OSError, pyarrow.ArrowException if it is no Parquet file."""
        # Without these two Arrow reads whole column chunks ahead.
        source = place.stream() if isinstance(place, RemoteFile) else place
        self._file = pq.ParquetFile(source, buffer_size=1 << 20, pre_buffer=False)
        groups = [self._file.metadata.row_group(number).num_rows for number in range(self._file.num_row_groups)]
        size = size_at(place)
        if min(groups, default=0) < 0 or sum(groups) > size + _ROWS_IN_SMALL_FILE:
            raise ValueError(f"claims {sum(groups)} rows in {size} bytes")
        self._starts: list[int] = [0, *accumulate(groups)]
        self._lock = Lock()
        self._names: list[str] = []
        self._reading: Iterator[pa.RecordBatch] = iter(())
        self._next = self._end = 0  # rows of the current row group that are not decoded yet
        self._batches: deque[tuple[int, pa.RecordBatch]] = deque(maxlen=_BATCHES)

    @property
    def schema(self) -> pa.Schema:
        """Columns of the file."""
        return self._file.schema_arrow

    @property
    def num_rows(self) -> int:
        """Rows of the file."""
        return self._starts[-1]

    def values(self, column: str) -> Iterator[Any]:
        """One column, from the first row to the last."""
        with self._lock:
            for batch in self._file.iter_batches(columns=[column]):
                yield from batch.column(column).to_pylist()

    def batch(self, row: int, columns: list[str]) -> tuple[pa.RecordBatch, int]:
        """Rows around `row`, and its number among them. Raises: ValueError if the file ends before it."""
        with self._lock:
            if columns != self._names:
                self._batches.clear()
                self._names, self._next, self._end = columns, 0, 0
            while (held := self._held(row)) is None:
                if not self._next <= row < self._end:
                    self._start_group_of(row)
                self._decode()
            return held

    def _held(self, row: int) -> tuple[pa.RecordBatch, int] | None:
        for start, batch in self._batches:
            if start <= row < start + batch.num_rows:
                return batch, row - start
        return None

    def _start_group_of(self, row: int) -> None:
        group = bisect_right(self._starts, row) - 1
        if not 0 <= group < self._file.num_row_groups:
            raise ValueError(f"expected a row below {self.num_rows}, got {row}")
        self._next, self._end = self._starts[group], self._starts[group + 1]
        self._reading = self._file.iter_batches(_ROWS, row_groups=[group], columns=self._names)

    def _decode(self) -> None:
        batch = next(self._reading, None)
        if batch is None:
            raise ValueError(f"expected rows up to {self._end}, got them up to {self._next}")
        self._batches.append((self._next, batch))
        self._next += batch.num_rows


def parquet_input(
    files: FileList, *, image: str | None = None, caption: str | None = None, key: str | None = None
) -> TableInput:
    """The rows of the .parquet files among `files`."""
    return TableInput(files, ".parquet", ParquetTable, image, caption, key)
