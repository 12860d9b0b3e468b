"""Where a store may be written: a folder of its own, taken by its dataset.json."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from vistok.data.shard import write_atomic


def check_apart(out: Path, sources: Iterable[Path]) -> None:
    """Raise ValueError if a result would lie in a store that it is made of, or the other way round."""
    there = out.resolve()
    for source in sources:
        here = source.resolve()
        if there.is_relative_to(here) or here.is_relative_to(there):
            raise ValueError(f"{out}: expected a folder apart from {source}, the one lies in the other; choose another")


def claim(out: Path, dataset: Mapping[str, Any]) -> None:
    """Write dataset.json into a new store, or check that the one there is the same.

    Raises: ValueError naming every field that differs, or if the folder holds something else.
    """
    file = out / "dataset.json"
    content = json.dumps(dataset, indent=2) + "\n"
    if not file.exists():
        if out.exists() and not out.is_dir():
            raise ValueError(f"{out}: expected a folder for the store, got a file")
        if out.exists() and any(not entry.name.startswith(file.name) for entry in out.iterdir()):
            raise ValueError(f"{out}: expected a new or empty folder or a token store, got other files; choose another")
        write_atomic(file, content.encode())
        return
    try:
        there = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file}: expected JSON, got {error}; choose another folder") from error
    here = json.loads(content)  # lists for tuples, as in the file
    if not isinstance(there, dict) or there.get("plan_hash") != here["plan_hash"]:
        differing = "; ".join(_differences(there if isinstance(there, dict) else {}, here))
        raise ValueError(
            f"{out} was made by another plan: {differing}. Give the same settings and data, or another folder"
        )


def _differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    fields = sorted({*there, *here} - {"plan_hash"})
    return [
        f"{name}: there {there.get(name)!r}, here {here.get(name)!r}"
        for name in fields
        if there.get(name) != here.get(name)
    ]
