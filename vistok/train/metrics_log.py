"""metrics.jsonl of a run: one JSON object a line, steps rising."""

import json
import os
from pathlib import Path
from typing import Any


def append_row(log: Path, row: dict[str, Any]) -> None:
    """Add one line."""
    with open(log, "a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def last_row(log: Path) -> dict[str, float]:
    """The last line, empty if there is none."""
    rows = log.read_text(encoding="utf-8").splitlines() if log.is_file() else []
    return dict(json.loads(rows[-1])) if rows else {}


def drop_rows_after(log: Path, step: int) -> None:
    """Forget what a stopped run logged after its last checkpoint: those steps come again, and a line cut short."""
    if log.is_file():
        rows = log.read_text(encoding="utf-8").splitlines(keepends=True)
        kept = [row for row in rows if row.endswith("\n") and json.loads(row)["step"] <= step]
        partial = log.with_name(f"{log.name}.tmp.{os.getpid()}")
        partial.write_text("".join(kept), encoding="utf-8")
        os.replace(partial, log)
