"""Pictures that are files, with captions and annotations in files beside them."""

import json
import os
import stat
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from vistok.data.images import SUFFIXES
from vistok.data.inputs.captions import (
    MAX_TEXT_BYTES,
    METADATA_NAMES,
    Metadata,
    as_json,
    as_text,
    caption_in,
    read_metadata,
)
from vistok.data.inputs.entry import Entry, Record
from vistok.data.inputs.files import MAX_BYTES, Files, check_unchanged, in_order, spelled, suffix_of, version_of
from vistok.data.inputs.from_beside import FromBeside
from vistok.data.inputs.kept import Kept
from vistok.data.inputs.walk import unreadable


class _Beside(NamedTuple):
    """Files that tell about a picture, None = there is none, and their states; others: one of each `FromBeside`."""

    text: Path | None
    annotation: Path | None
    metadata: Path | None
    others: tuple[Path | None, ...]
    states: tuple[os.stat_result, ...]


class _Listing(NamedTuple):
    entries: list[Entry]
    left_out: dict[str, int]
    annotated: bool


@dataclass(frozen=True)
class FolderInput:
    """Pictures among `files`. Caption: `<stem>.txt`, else `caption` or `text` of the annotation.

    Annotation: `<stem>.json`, joined with the row of metadata.jsonl or metadata.csv in the picture's folder or the
    nearest one above that has such a file. beside: what makes further columns of files beside the pictures.
    """

    files: Files
    beside: tuple[FromBeside, ...] = ()
    listed: Kept = field(default_factory=Kept, repr=False, compare=False)
    kept: Kept = field(default_factory=Kept, repr=False, compare=False)

    @property
    def fields(self) -> pa.Schema:
        """json: the annotation as text, if any picture has one; what is made of other files beside the pictures."""
        return pa.schema(
            [
                *([pa.field("json", pa.string())] if self._listing().annotated else []),
                *(made for maker in self.beside for made in maker.fields),
            ]
        )

    @property
    def decoder(self) -> str:
        """What decides the columns that are made of other files."""
        return ", ".join(maker.decoder for maker in self.beside)

    @property
    def left_out(self) -> dict[str, int]:
        """Other files by suffix, and rows of metadata that name no picture."""
        return dict(self._listing().left_out)

    def entries(self) -> list[Entry]:
        """Every picture, and a problem for each file or folder that cannot be read."""
        self.listed.clear()
        self.kept.clear()
        return list(self._listing().entries)

    def read(self, entry: Entry) -> Record:
        """One picture. Raises: ValueError, OSError if it or a file beside it has changed or cannot be read."""
        if entry.problem:
            raise ValueError(entry.problem)
        path = self.files.path(entry.source)
        beside = self._beside(path)
        check_unchanged(path, entry, path.stat(), *beside.states)
        content = path.read_bytes()
        if len(content) != entry.size:
            raise ValueError(f"{path}: expected {entry.size} bytes as listed, got {len(content)}; plan again")
        annotation, caption = self._annotation(path, beside)
        if beside.text:
            caption = _text_of(beside.text)
        fields: dict[str, Any] = {} if annotation is None else {"json": annotation}
        for maker, file in zip(self.beside, beside.others, strict=True):
            if file is not None:
                fields |= maker.values(self._name(path), file, content)
        return Record(content, caption, fields)

    def _annotation(self, path: Path, beside: _Beside) -> tuple[str | None, str | None]:
        """The annotation as JSON text, and the caption in it."""
        row = self._row(path, beside.metadata)
        if beside.annotation is None:
            return row, None if row is None else caption_in(json.loads(row))
        text = _text_of(beside.annotation)
        value = as_json(text, str(beside.annotation))
        if row is None:
            return text, caption_in(value)
        if not isinstance(value, dict):
            raise ValueError(f"{beside.annotation}: expected a JSON object to join with {beside.metadata}")
        both = json.loads(row) | value
        return json.dumps(both), caption_in(both)

    def _row(self, path: Path, metadata: Path | None) -> str | None:
        if metadata is None:
            return None
        return self._table(metadata).rows.get(path.relative_to(metadata.parent).as_posix())

    def _table(self, metadata: Path) -> Metadata:
        return self.kept.get((metadata, version_of(metadata.stat())), lambda: read_metadata(metadata))

    def _beside(self, path: Path) -> _Beside:
        text, annotation = path.with_suffix(".txt"), path.with_suffix(".json")
        metadata = self.kept.get(path.parent, lambda: _nearest_metadata(path.parent, self.files.root))
        others = tuple(maker.file(self._name(path)) for maker in self.beside)
        files = (text, annotation, metadata, *others)
        there = {file: state for file in files if file and (state := _state_of_file(file))}
        return _Beside(
            text if text in there else None,
            annotation if annotation in there else None,
            metadata if metadata in there else None,
            tuple(file if file in there else None for file in others),
            tuple(there.values()),
        )

    def _name(self, path: Path) -> Path:
        return path.relative_to(self.files.root)

    def _listing(self) -> _Listing:
        return self.listed.get("listing", self._list)

    def _list(self) -> _Listing:
        entries = list(self.files.problems)
        left_out = Counter(dict(self.files.left_out))
        used: set[Path] = set()
        tables: set[Path] = set()
        rows_met: Counter[Path] = Counter()
        annotated = False
        for name in self.files.names:
            if not is_picture(name):
                continue
            path = self.files.root / name
            try:
                beside = self._beside(path)
                row = self._row(path, beside.metadata)
                entries.append(_entry(path, spelled(name), beside))
            except OSError as error:
                entries.append(unreadable(name, error))
                continue
            used.update(file for file in (*beside[:3], *beside.others) if file)
            tables.update([beside.metadata] if beside.metadata else [])
            left_out.update(
                maker.missing for maker, file in zip(self.beside, beside.others, strict=True) if file is None
            )
            if beside.metadata and row is not None:
                rows_met[beside.metadata] += 1
            annotated = annotated or row is not None or beside.annotation is not None
        for metadata in sorted(tables):
            table = self._table(metadata)
            entries += _problems(spelled(str(metadata.relative_to(self.files.root))), table.problems)
            left_out[f"rows of {metadata.name} without a picture"] += len(table.rows) - rows_met[metadata]
        others = (name for name in self.files.names if not is_picture(name))
        left_out.update(suffix_of(name) for name in others if self.files.root / name not in used)
        return _Listing(in_order(entries), dict(sorted((+left_out).items())), annotated)


def is_picture(name: str) -> bool:
    """Whether a file name ends like a picture's."""
    return name.lower().endswith(SUFFIXES)


def _entry(path: Path, source: str, beside: _Beside) -> Entry:
    state = path.stat()
    problem = ""
    if not stat.S_ISREG(state.st_mode):
        problem = f"{source}: expected a regular file"
    elif state.st_size > MAX_BYTES:
        problem = f"{source}: expected at most {MAX_BYTES} bytes, got {state.st_size}"
    return Entry(source, source, 0, state.st_size, version_of(state, *beside.states), problem)


def _problems(source: str, problems: Mapping[int, str]) -> list[Entry]:
    return [Entry(f"{source}:{line}", source, line, problem=problem) for line, problem in problems.items()]


def _nearest_metadata(folder: Path, root: Path) -> Path | None:
    while True:
        for name in METADATA_NAMES:
            if _state_of_file(folder / name):
                return folder / name
        if folder == root or folder == folder.parent:
            return None
        folder = folder.parent


def _state_of_file(path: Path) -> os.stat_result | None:
    try:
        state = path.stat()
    except OSError:  # there is none; one that leads nowhere is a problem of the walk
        return None
    return state if stat.S_ISREG(state.st_mode) else None


def _text_of(path: Path) -> str:
    with open(path, "rb") as file:
        return as_text(file.read(MAX_TEXT_BYTES + 1), str(path))
