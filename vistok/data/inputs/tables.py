"""Pictures in tables: one row a picture, files of one schema. How a file is read is left to its kind."""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import pyarrow as pa

from vistok.data.inputs.columns import EMBEDDED, Cells, Columns, find_columns, record_in
from vistok.data.inputs.entry import Entry, Record
from vistok.data.inputs.files import check_version, in_order, spelled, suffix_of
from vistok.data.inputs.kept import Kept
from vistok.data.inputs.ranged import FileList, Place, version_at

_UNREADABLE = (OSError, ValueError, pa.ArrowException)  # some of Arrow's are neither of the first two


class Table(Protocol):
    """An open table file; `batch` may be called by several threads."""

    @property
    def schema(self) -> pa.Schema:
        """Columns of the file."""
        ...

    @property
    def num_rows(self) -> int:
        """Rows of the file."""
        ...

    def values(self, column: str) -> Iterable[Any]:
        """One column, from the first row to the last."""
        ...

    def batch(self, row: int, columns: list[str]) -> tuple[pa.RecordBatch, int]:
        """Rows around `row` with some columns, and the number of `row` among them."""
        ...


class _File(NamedTuple):
    source: str
    version: int
    schema: pa.Schema
    num_rows: int


class _Listing(NamedTuple):
    entries: list[Entry]
    left_out: dict[str, int]
    columns: Columns | None


@dataclass(frozen=True)
class TableInput:
    """Rows of those among `files` that end in `suffix`. image, caption, key: columns, None = found by name and type.

    open_table: opens one file, given as its path or what stands for an object; a class or function of a module, so that
    it can be pickled.
    """

    files: FileList
    suffix: str
    open_table: Callable[..., Table]
    image: str | None = None
    caption: str | None = None
    key: str | None = None
    cells: Cells = EMBEDDED
    listed: Kept = field(default_factory=Kept, repr=False, compare=False)
    opened: Kept = field(default_factory=lambda: Kept(4), repr=False, compare=False)

    @property
    def fields(self) -> pa.Schema:
        """Columns besides picture, caption and key; those with bytes are left out."""
        columns = self._listing().columns
        return columns.fields if columns else pa.schema([])

    @property
    def left_out(self) -> dict[str, int]:
        """Columns with bytes that are not the picture (how many rows), and other files by suffix."""
        return dict(self._listing().left_out)

    def entries(self) -> list[Entry]:
        """Every row, and a problem for each file that cannot be read or has another schema.

        Raises: ValueError if no file has a column of pictures, or not those that were named.
        """
        self.listed.clear()
        self.opened.clear()
        return list(self._listing().entries)

    def read(self, entry: Entry) -> Record:
        """One row. Raises: ValueError, OSError if its file has changed, or it has no picture or cannot be read."""
        if entry.problem:
            raise ValueError(entry.problem)
        path = self.files.path(entry.source)
        check_version(path, entry, version_at(path))
        try:
            table, columns = self.opened.get((path, entry.version), lambda: self._open(path))
            batch, row = table.batch(entry.offset, columns.needed)
            return record_in(batch, row, columns, self.cells)
        except _UNREADABLE as error:
            raise ValueError(f"{path} row {entry.offset}: {error}") from error

    def _open(self, path: Place) -> tuple[Table, Columns]:
        table = self.open_table(path)
        return table, self._columns(table.schema)

    def _columns(self, schema: pa.Schema) -> Columns:
        return find_columns(schema, image=self.image, caption=self.caption, key=self.key, cells=self.cells)

    def _listing(self) -> _Listing:
        return self.listed.get("listing", self._list)

    def _list(self) -> _Listing:
        entries = list(self.files.problems)
        left_out = Counter(dict(self.files.left_out))
        found: list[_File] = []
        for name in self.files.names:
            if suffix_of(name) != self.suffix:
                left_out[suffix_of(name)] += 1
                continue
            try:
                found.append(self._look_into(name))
            except _UNREADABLE as error:
                entries.append(_problem(spelled(name), error))
        columns, first = self._common_columns(found)
        for file in found:
            if columns and _kinds(file.schema) == _kinds(first):
                entries += self._rows(file, columns)
                left_out.update(dict.fromkeys(columns.left_out, file.num_rows))
            else:
                entries.append(_problem(file.source, ValueError(_differences(file.schema, first))))
        return _Listing(in_order(entries), dict(sorted(left_out.items())), columns)

    def _look_into(self, name: str) -> _File:
        path = self.files.path(spelled(name))
        version = version_at(path)
        table = self.open_table(path)
        return _File(spelled(name), version, table.schema, table.num_rows)

    def _common_columns(self, found: list[_File]) -> tuple[Columns | None, pa.Schema]:
        """Those of the first file that has pictures; the others must have the same schema."""
        problems: list[str] = []
        for file in found:
            try:
                return self._columns(file.schema), file.schema
            except ValueError as error:
                problems.append(f"{self.files.path(file.source)}: {error}")
        if problems:
            raise ValueError(problems[0])
        return None, pa.schema([])

    def _rows(self, file: _File, columns: Columns) -> Iterable[Entry]:
        keys: Iterable[Any] = (None for _ in range(file.num_rows))
        try:
            if columns.key:
                keys = list(self.open_table(self.files.path(file.source)).values(columns.key))
        except _UNREADABLE as error:
            return [_problem(file.source, error)]
        return [
            Entry(f"{file.source}/{row}" if key is None else str(key), file.source, row, -1, file.version)
            for row, key in enumerate(keys)
        ]


def _problem(source: str, error: Exception) -> Entry:
    return Entry(source, source, problem=f"{source}: {type(error).__name__}: {error}")


def _kinds(schema: pa.Schema) -> dict[str, pa.DataType]:
    return dict(zip(schema.names, schema.types, strict=True))


def _differences(schema: pa.Schema, first: pa.Schema) -> str:
    here, there = _kinds(schema), _kinds(first)
    wrong = [
        f"{name} is {here.get(name, 'absent')} and not {there.get(name, 'absent')}"
        for name in sorted({*here, *there})
        if here.get(name) != there.get(name)
    ]
    return f"expected the columns of the first file with pictures, but {', '.join(wrong)}"
