"""Where a store may be written: a folder or URL of its own, taken by its dataset.json."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from vistok.data.store_files import StoreFiles, is_url

_FILE = "dataset.json"


def folder_apart(out: str | Path, sources: Iterable[Path]) -> Path:
    """The folder of a result that is made of stores.

    Raises: ValueError if it is a URL, or would lie in one of the stores, or the other way round.
    """
    if is_url(out):
        raise ValueError(f"{out}: expected a local folder, got a URL; copy what is made there afterwards")
    there = Path(out).resolve()
    for source in sources:
        here = source.resolve()
        if there.is_relative_to(here) or here.is_relative_to(there):
            raise ValueError(f"{out}: expected a folder apart from {source}, the one lies in the other; choose another")
    return Path(out)


def claim(files: StoreFiles, dataset: Mapping[str, Any]) -> None:
    """Write dataset.json into a new store, or check that the one there is the same.

    Raises: ValueError naming every field that differs, or if the folder holds something else; OSError naming the file.
    """
    content = json.dumps(dataset, indent=2) + "\n"
    [there] = files.contents([_FILE])
    if there is None:
        try:
            others = [entry for entry in files.listed(".") if not entry.name.startswith(_FILE)]
        except NotADirectoryError as error:
            raise ValueError(f"{files.name}: expected a folder for the store, got a file") from error
        if others:
            raise ValueError(
                f"{files.name}: expected a new or empty folder or a token store, got other files; choose another"
            )
        try:
            files.create(_FILE, content.encode())
            return
        except FileExistsError:  # another process was quicker
            [there] = files.contents([_FILE])
    _check_same(f"{files.name}/{_FILE}", files.name, there or b"", json.loads(content))


def _check_same(file: str, name: str, content: bytes, here: Mapping[str, Any]) -> None:
    """here: with lists for tuples, as in the file."""
    try:
        there = json.loads(content)
    except ValueError as error:
        raise ValueError(f"{file}: expected JSON, got {error}; choose another folder") from error
    if not isinstance(there, dict) or there.get("plan_hash") != here["plan_hash"]:
        differing = "; ".join(_differences(there if isinstance(there, dict) else {}, here))
        raise ValueError(
            f"{name} was made by another plan: {differing}. Give the same settings and data, or another folder"
        )


def _differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    fields = sorted({*there, *here} - {"plan_hash"})
    return [
        f"{name}: there {there.get(name)!r}, here {here.get(name)!r}"
        for name in fields
        if there.get(name) != here.get(name)
    ]
