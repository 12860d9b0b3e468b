"""The files of an input: their names as keys, what tells that they changed, and how many bytes one may have."""

import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path, PurePath

from vistok.data.inputs.entry import Entry

MAX_BYTES = 256 << 20  # of one picture; a header that claims more is taken for an error
_COMPRESSED_TARS = (".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst")


@dataclass(frozen=True)
class Files:
    """Files below a folder. names: relative to `root`, sorted as spelled; problems: what could not be listed.

    left_out: what was found and is no file, by description. odd: (spelled, name) of the names that are not UTF-8.
    """

    root: Path
    names: tuple[str, ...]
    problems: tuple[Entry, ...] = ()
    left_out: tuple[tuple[str, int], ...] = ()
    odd: tuple[tuple[str, str], ...] = ()

    def path(self, source: str) -> Path:
        """The file of a spelled name."""
        return self.root / self._names_by_source.get(source, source)

    @cached_property
    def _names_by_source(self) -> dict[str, str]:
        return dict(self.odd)


def collect(
    root: Path, names: Iterable[str], problems: Iterable[Entry] = (), left_out: Iterable[tuple[str, int]] = ()
) -> Files:
    """Sort names; two that are spelled alike leave one file and a problem."""
    by_source: dict[str, str] = {}
    problems = list(problems)
    for name in sorted(set(names)):
        source = spelled(name)
        if source in by_source:
            problems.append(Entry(source, source, 1, problem=f"{source}: another file is spelled the same; rename one"))
        else:
            by_source[source] = name
    ordered = {source: by_source[source] for source in sorted(by_source)}
    odd = tuple((source, name) for source, name in ordered.items() if source != name)
    return Files(root, tuple(ordered.values()), tuple(problems), tuple(left_out), odd)


def spelled(name: str) -> str:
    r"""A file name as text for a key: bytes that are not UTF-8 as \xNN, because parquet holds nothing else."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def suffix_of(name: str) -> str:
    """The suffix a file is counted under: ".jpg", ".tar.gz", "no suffix"."""
    path = PurePath(name.lower())
    both = "".join(path.suffixes[-2:])
    return both if both in _COMPRESSED_TARS else path.suffix or "no suffix"


def version_of(*states: os.stat_result) -> int:
    """A number that changes when the size or the time of last change of one of the files does."""
    text = ",".join(f"{state.st_size}:{state.st_mtime_ns}" for state in states)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) >> 1


def in_order(entries: Iterable[Entry]) -> list[Entry]:
    """Sorted by (source, offset), with `#2` and so on behind keys that come again."""
    taken: set[str] = set()
    counts: dict[str, int] = {}
    ordered = []
    for entry in sorted(entries, key=lambda entry: (entry.source, entry.offset, entry.key)):
        key = entry.key
        while key in taken:
            counts[entry.key] = counts.get(entry.key, 1) + 1
            key = f"{entry.key}#{counts[entry.key]}"
        taken.add(key)
        ordered.append(entry if key == entry.key else replace(entry, key=key))
    return ordered


def check_unchanged(path: Path, entry: Entry, *states: os.stat_result) -> None:
    """Raises: ValueError if the entry has a problem, or its files are not those that were listed."""
    check_version(path, entry, version_of(*states))


def check_version(path: object, entry: Entry, version: int) -> None:
    """Raises: ValueError if the entry has a problem, or its file, of that version now, is not the one listed."""
    if entry.problem:
        raise ValueError(entry.problem)
    if version != entry.version:
        raise ValueError(f"{path}: expected the file that was listed, it has changed since; plan again")
