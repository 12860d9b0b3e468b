"""Results as a JSON file, whole or not at all; and JSON that others wrote."""

import json
import os
from pathlib import Path
from typing import Any

_DIGITS = 300  # longer whole numbers are no float


def read_json_text(text: str) -> Any:
    """The value; whole numbers of more than 300 digits are infinite. Raises: ValueError, also where it nests deep."""
    try:
        return json.loads(text, parse_int=lambda digits: (int if len(digits) <= _DIGITS else float)(digits))
    except RecursionError as error:
        raise ValueError("values nested too deep") from error


def write_json(path: str | Path, value: Any) -> None:
    """Write `value`, indented; parent folders are made. Raises: ValueError for NaN or infinity, TypeError as json."""
    path = Path(path)
    text = json.dumps(value, indent=2, allow_nan=False) + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.tmp.{os.getpid()}")
    with open(partial, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)
