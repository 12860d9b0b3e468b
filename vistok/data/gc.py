"""Delete what interrupted runs left in a token store: temporary files, shards without a record, records of other plans.

Only names that the writer of a store gives are touched, only in the store's own folders, and no link is followed. A
local folder is locked meanwhile; an object store has no locks, so there what is young may be a run's that is going on.
"""

import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from vistok.data.local_files import LocalFiles
from vistok.data.store_files import StoreFiles, commit_numbers, open_files, read_commits, read_dataset

_TEMPORARY = r"\.tmp\.\d+\.\d+"
_LEFT = rf"\.attempt\.[0-9a-f]{{32}}(?:{_TEMPORARY})?|{_TEMPORARY}"
_DAY = 24 * 3600.0
_SHARD = r"(?P<shard>\d{5,})"
# Folder below the store -> names of its files.
_NAMES = {
    ".": re.compile(rf"dataset\.json(?P<temporary>{_TEMPORARY})", re.ASCII),
    "commits": re.compile(rf"{_SHARD}\.json(?P<temporary>{_TEMPORARY})?", re.ASCII),
    "shards": re.compile(rf"{_SHARD}\.(?:safetensors|parquet)(?P<temporary>{_LEFT})?", re.ASCII),
    "errors": re.compile(rf"{_SHARD}\.jsonl(?P<temporary>{_LEFT})?", re.ASCII),
}


class Garbage(NamedTuple):
    """A file that no reader of the store uses: path below the store, size, and why it is garbage."""

    file: str
    bytes: int
    why: str


def collect_garbage(path: str | Path, *, dry_run: bool = False, min_age: float | None = None) -> list[Garbage]:
    """Delete the garbage of a store, or only find it; what was (or would be) deleted.

    min_age: seconds since a file was written before it may be garbage; None = 0 in a local folder, a day behind a URL.
    Raises: FileNotFoundError, ValueError if `path` is no store, has a commit record that cannot be read, or if another
    process works on it; OSError if a file cannot be deleted.
    """
    files = open_files(path)
    dataset = read_dataset(files)
    age = min_age if min_age is not None else 0.0 if isinstance(files, LocalFiles) else _DAY
    with files.held(exclusive=True):
        garbage = _garbage(files, dataset, age)
        if not dry_run:
            for item in garbage:
                files.remove(item.file)
    return garbage


def _garbage(files: StoreFiles, dataset: Mapping[str, Any], min_age: float) -> list[Garbage]:
    found = []
    latest = time.time() - min_age
    # Listed before the records are read: a shard that is committed in between is then seen as committed.
    listed = {folder: files.listed(folder) for folder in _NAMES}
    committed = {*read_commits(files, dataset["plan_hash"], commit_numbers(files))}
    # Records before the data that they speak of: what is left if this is interrupted is garbage as well.
    for folder, pattern in _NAMES.items():
        for entry in listed[folder]:
            name = pattern.fullmatch(entry.name) if entry.plain and entry.modified <= latest else None
            why = _why(folder, name.groupdict(), committed) if name else None
            if why is not None:
                found.append(Garbage(Path(folder, entry.name).as_posix(), entry.bytes, why))
    return found


def _why(folder: str, name: Mapping[str, str | None], committed: set[int]) -> str | None:
    if name["temporary"] is not None:
        return "temporary file of a run that was interrupted"
    text = str(name["shard"])
    shard = int(text)
    if text != f"{shard:05d}" or shard in committed:
        return None
    return "commit record of another plan" if folder == "commits" else "shard without a commit record"
