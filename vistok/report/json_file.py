"""Results as a JSON file, whole or not at all."""

import json
import os
from pathlib import Path
from typing import Any


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
