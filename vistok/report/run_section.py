"""What a page tells of a training run: its curves, its numbers, its settings, the card of its model."""

import json
from pathlib import Path
from typing import Any

from vistok.report.json_file import read_json_text
from vistok.report.json_parts import flattened
from vistok.report.page import Part, Section
from vistok.report.parts import Facts, Preformatted, Remarks
from vistok.report.sortable_table import number_text, table_of
from vistok.report.svg_chart import Curve, LineChart, Mark, SideBySide

LOG = "metrics.jsonl"
_ROWS = 200
_MARKS = 1000
_CARDS = ("README.md", "model/README.md")
_AXES = ("step", "seconds")


def run_section(folder: Path) -> Section:
    """All parts. Raises: ValueError naming the line of the log that is none."""
    rows, remarks = read_log(folder / LOG)
    parts: list[Part] = [Facts("Run", _facts(rows))]
    charts = _charts(rows)
    if charts:
        parts.append(SideBySide("Training curves", charts))
    shown = _spread(rows, _ROWS)
    headings = list(dict.fromkeys(name for row in shown for name in row))
    if shown:
        parts.append(table_of("Logged values", headings, [[row.get(name, "") for name in headings] for row in shown]))
    if len(shown) < len(rows):
        remarks.append(f"{len(shown):,} of {len(rows):,} logged lines are in the table, evenly spread.")
    parts += [Remarks(remarks)] if remarks else []
    parts += _settings(folder / "config.json")
    parts += [
        Preformatted("Model card", (folder / name).read_text(encoding="utf-8", errors="replace"))
        for name in _CARDS
        if (folder / name).is_file()
    ]
    return Section(folder.resolve().name, f"training run in {folder}", parts)


def read_log(log: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """Rows by rising step, nested values under dotted names, and what there is to remark on.

    A last line that is cut short is left out, as a run that goes on may be writing it. Raises: ValueError naming any
    other line that is no JSON object with a step.
    """
    # Not splitlines, which also ends lines at characters that may stand in a JSON string.
    *lines, rest = log.read_text(encoding="utf-8", errors="replace").split("\n")
    remarks = ["The last line of the log is cut short and left out."] if rest else []
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            row = read_json_text(line)
        except ValueError as error:
            raise ValueError(f"{log}, line {number}: expected JSON, got {error}") from error
        if not isinstance(row, dict) or type(row.get("step")) not in (int, float):
            raise ValueError(f"{log}, line {number}: expected an object with a step, got {line.strip():.80}")
        rows.append(flattened(row))
    return rows, remarks


def _facts(rows: list[dict[str, Any]]) -> list[tuple[str, str]]:
    if not rows:
        return [("logged", "nothing yet")]
    last = rows[-1]
    return [("logged lines", f"{len(rows):,}")] + [
        (f"last {name}", number_text(value)) for name, value in last.items() if _is_number(value)
    ]


def _charts(rows: list[dict[str, Any]]) -> list[LineChart]:
    shown = _spread(rows, _MARKS)
    names = dict.fromkeys(name for row in shown for name, value in row.items() if _is_number(value))
    charts = []
    for name in (name for name in names if name not in _AXES):
        marks = [
            Mark(float(row["step"]), float(row[name]), text=f"step {row['step']:,}: {row[name]:.5g}")
            for row in shown
            if _is_number(row.get(name))
        ]
        charts.append(LineChart(name, "step", name, [Curve(name, marks)], small=True))
    return charts


def _settings(path: Path) -> list[Part]:
    if not path.is_file():
        return []
    try:
        held = json.dumps(read_json_text(path.read_text(encoding="utf-8")), indent=2, ensure_ascii=False)
    except (OSError, ValueError, RecursionError) as error:
        return [Remarks([f"{path} cannot be read: {error}"])]
    return [Preformatted("Settings", held)]


def _spread(rows: list[dict[str, Any]], most: int) -> list[dict[str, Any]]:
    """At most so many rows, evenly spread, the first and the last among them."""
    if len(rows) <= most:
        return rows
    return [rows[round(number * (len(rows) - 1) / (most - 1))] for number in range(most)]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
