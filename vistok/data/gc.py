"""Delete what interrupted runs left in a token store: temporary files, shards without a record, records of other plans.

Only names that the writer of a store gives are touched, only in the store's own folders, and no link is followed.
"""

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from vistok.data.shard import locked, read_commit
from vistok.data.shard_content import commit_numbers
from vistok.data.store import read_dataset

_TEMPORARY = r"\.tmp\.\d+\.\d+"
_SHARD = r"(?P<shard>\d{5,})"
# Folder below the store -> names of its files.
_NAMES = {
    ".": re.compile(rf"dataset\.json(?P<temporary>{_TEMPORARY})", re.ASCII),
    "commits": re.compile(rf"{_SHARD}\.json(?P<temporary>{_TEMPORARY})?", re.ASCII),
    "shards": re.compile(rf"{_SHARD}\.(?:safetensors|parquet)(?P<temporary>{_TEMPORARY})?", re.ASCII),
    "errors": re.compile(rf"{_SHARD}\.jsonl(?P<temporary>{_TEMPORARY})?", re.ASCII),
}


class Garbage(NamedTuple):
    """A file that no reader of the store uses: path below the store, size, and why it is garbage."""

    file: str
    bytes: int
    why: str


def collect_garbage(path: str | Path, *, dry_run: bool = False) -> list[Garbage]:
    """Delete the garbage of a store, or only find it; what was (or would be) deleted.

    Raises: FileNotFoundError, ValueError if `path` is no store, has a commit record that cannot be read, or if another
    process works on it.
    """
    root = Path(path)
    dataset = read_dataset(root)
    with locked(root, exclusive=True):
        garbage = _garbage(root, dataset)
        if not dry_run:
            for item in garbage:
                (root / item.file).unlink()
    return garbage


def _garbage(root: Path, dataset: Mapping[str, Any]) -> list[Garbage]:
    recorded = commit_numbers(root)
    committed = {number for number in recorded if read_commit(root, number, dataset["plan_hash"]) is not None}
    found = []
    # Records before the data that they speak of: what is left if this is interrupted is garbage as well.
    for folder, pattern in _NAMES.items():
        if folder != "." and (root / folder).is_symlink():
            continue
        for entry in _files(root / folder):
            name = pattern.fullmatch(entry.name)
            why = _why(folder, name.groupdict(), committed) if name else None
            if why is not None:
                place = Path(folder, entry.name).as_posix()
                found.append(Garbage(place, entry.stat(follow_symlinks=False).st_size, why))
    return found


def _why(folder: str, name: Mapping[str, str | None], committed: set[int]) -> str | None:
    if name["temporary"] is not None:
        return "temporary file of a run that was interrupted"
    text = str(name["shard"])
    shard = int(text)
    if text != f"{shard:05d}" or shard in committed:
        return None
    return "commit record of another plan" if folder == "commits" else "shard without a commit record"


def _files(folder: Path) -> Iterator[os.DirEntry[str]]:
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except FileNotFoundError:
        return
    yield from (entry for entry in entries if entry.is_file(follow_symlinks=False))
