"""Pictures on the web: a list of URLs in a text file (one a line), a CSV or a Parquet file. Fetched when they are read.

The list makes the plan, the web may change under it: what a URL gave is told by the row's digest.
"""

import csv
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import csv as arrow_csv

from vistok.data.inputs.captions import as_text
from vistok.data.inputs.columns import URLS
from vistok.data.inputs.entry import Entry, Record
from vistok.data.inputs.fetch import FetchRules, fetch
from vistok.data.inputs.files import Files, suffix_of
from vistok.data.inputs.parquet import ParquetTable
from vistok.data.inputs.tables import Table, TableInput


class ListTable:
    """A table in memory."""

    def __init__(self, table: pa.Table) -> None:
        self._table = table

    @property
    def schema(self) -> pa.Schema:
        """Columns of the list."""
        return self._table.schema

    @property
    def num_rows(self) -> int:
        """Rows of the list."""
        return int(self._table.num_rows)

    def values(self, column: str) -> Iterator[Any]:
        """One column, from the first row to the last."""
        return iter(self._table[column].to_pylist())

    def batch(self, row: int, columns: list[str]) -> tuple[pa.RecordBatch, int]:
        """One row. Raises: ValueError if there is no such row."""
        if not 0 <= row < self.num_rows:
            raise ValueError(f"expected a row below {self.num_rows}, got {row}")
        [batch] = self._table.select(columns).slice(row, 1).combine_chunks().to_batches()
        return batch, 0


def read_text_list(path: Path) -> ListTable:
    """A URL a line; empty lines and what follows a # at the start of a line are left out."""
    lines = (line.strip() for line in as_text(path.read_bytes(), str(path)).splitlines())
    return ListTable(pa.table({"url": pa.array([line for line in lines if line and line[0] != "#"], pa.string())}))


def read_csv_list(path: Path) -> ListTable:
    """A CSV file with a line of names. Raises: pyarrow.ArrowException if it is none."""
    with open(path, encoding="utf-8-sig", newline="") as file:
        names = next(csv.reader(file), [])
    # All text: a number that stands for a name or a date must not become another one.
    kinds = dict.fromkeys(names, pa.string())
    table = arrow_csv.read_csv(
        path,
        parse_options=arrow_csv.ParseOptions(newlines_in_values=True),
        convert_options=arrow_csv.ConvertOptions(column_types=kinds, strings_can_be_null=False),
    )
    return ListTable(table)


_READERS: dict[str, Callable[[Path], Table]] = {".txt": read_text_list, ".csv": read_csv_list, ".parquet": ParquetTable}


@dataclass(frozen=True)
class UrlInput:
    """The pictures that the rows of a table name by URL. The URL is carried as a column of the store."""

    table: TableInput
    rules: FetchRules = field(default_factory=FetchRules)

    @property
    def fields(self) -> pa.Schema:
        """Columns besides caption and key, that of the URLs too."""
        return self.table.fields

    @property
    def left_out(self) -> dict[str, int]:
        """Columns with bytes."""
        return self.table.left_out

    def entries(self) -> list[Entry]:
        """Every row, and a problem for each file that cannot be read. Nothing is fetched."""
        return self.table.entries()

    def read(self, entry: Entry) -> Record:
        """Fetch one picture. Raises: ValueError, OSError as `fetch`, or if its list has changed."""
        record = self.table.read(entry)
        return replace(record, content=fetch(record.content.decode(), self.rules))


def url_input(
    files: Files, *, url: str | None, caption: str | None, key: str | None, rules: FetchRules | None = None
) -> UrlInput:
    """The URLs in lists of one kind. Raises: ValueError if files are of several kinds or of another one."""
    kinds = sorted({suffix_of(name) for name in files.names})
    if len(kinds) != 1 or kinds[0] not in _READERS:
        raise ValueError(f"{files.root}: expected URLs in files of one kind ({', '.join(_READERS)}), got {kinds}")
    table = TableInput(files, kinds[0], _READERS[kinds[0]], url, caption, key, URLS)
    return UrlInput(table, rules or FetchRules())
