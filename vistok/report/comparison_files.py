"""The files of a comparison beside its numbers: table.md, and report.html made of result.json."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vistok.data.shard import write_atomic
from vistok.report.eval_section import RESULT, eval_section
from vistok.report.markdown_table import markdown_table
from vistok.report.page import write_page
from vistok.report.sortable_table import SortableTable

_PICTURES, _ROOM = 12, 20_000_000


def write_comparison(folder: Path, table: SortableTable) -> list[str]:
    """Write table.md and, of the result.json that is there, report.html; returns their names."""
    rows = [[cell.text for cell in row] for row in table.rows]
    write_atomic(folder / "table.md", markdown_table(table.headings, rows, table.numeric).encode())
    section = eval_section(folder / RESULT, _PICTURES, _ROOM)
    write_page(folder / "report.html", section.title, [section])
    return ["table.md", "report.html"]


def as_csv(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A line for each row; empty where there is no value."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([f"{value:.6g}" if isinstance(value, float) else value for value in row] for row in rows)
    return text.getvalue()
