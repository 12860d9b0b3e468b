"""metrics.jsonl of a run: one JSON object a line, steps rising."""

import json
from pathlib import Path


def append_row(log: Path, row: dict[str, float]) -> None:
    """Add one line."""
    with open(log, "a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def last_row(log: Path) -> dict[str, float]:
    """The last line, empty if there is none."""
    rows = log.read_text(encoding="utf-8").splitlines() if log.is_file() else []
    return dict(json.loads(rows[-1])) if rows else {}


def drop_rows_after(log: Path, step: int) -> None:
    """Forget what a stopped run logged after its last checkpoint: those steps come again."""
    if log.is_file():
        rows = log.read_text(encoding="utf-8").splitlines(keepends=True)
        log.write_text("".join(row for row in rows if json.loads(row)["step"] <= step), encoding="utf-8")
