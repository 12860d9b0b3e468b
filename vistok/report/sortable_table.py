"""A table that its reader sorts, by a click or a key on the heading of a column."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

MAX_ROWS = 500
_NO_NUMBERS = ("", "-", "nan", "inf", "-inf")  # what may stand in a column of numbers


@dataclass(frozen=True)
class Cell:
    """What is shown, and by what it is sorted: a number, or None for the text itself."""

    text: str
    number: float | None = None

    @property
    def key(self) -> str:
        """The number as an attribute, empty for texts."""
        return "" if self.number is None else repr(float(self.number))


@dataclass(frozen=True)
class SortableTable:
    """Rows of cells under headings; marked: rows that stand out, by number."""

    title: str
    headings: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    left_out: int = 0
    marked: frozenset[int] = frozenset()
    marked_as: str = ""
    template: ClassVar[str] = "sortable_table.html.jinja"

    @cached_property
    def numeric(self) -> list[bool]:
        """Of each column whether it holds numbers, which stand at the right."""
        return [
            any(row[at].number is not None for row in self.rows)
            and all(row[at].number is not None or row[at].text in _NO_NUMBERS for row in self.rows)
            for at in range(len(self.headings))
        ]


def table_of(title: str, headings: Sequence[str], rows: Iterable[Sequence[Any]], **marks: Any) -> SortableTable:
    """A table of plain values: numbers, texts, truths, None; rows beyond MAX_ROWS are counted, not shown."""
    all_rows = list(rows)
    cells = [[cell_of(value) for value in row] for row in all_rows[:MAX_ROWS]]
    return SortableTable(title, headings, cells, len(all_rows) - len(cells), **marks)


def cell_of(value: Any) -> Cell:
    """A plain value as a cell; a cell as it is."""
    if isinstance(value, Cell):
        return value
    if value is None:
        return Cell("-")
    if isinstance(value, bool):
        return Cell("yes" if value else "no")
    if isinstance(value, int | float):
        return Cell(number_text(value), float(value) if math.isfinite(value) else None)
    return Cell(str(value))


def number_text(value: float) -> str:
    """Integers whole with separators, others to five digits that count."""
    if isinstance(value, int) or (math.isfinite(value) and value == int(value) and abs(value) < 1e15):
        return f"{int(value):,}"
    return f"{value:.5g}" if abs(value) < 1e5 else f"{value:,.0f}"
