"""Captions and annotations beside a picture: text, JSON, and the metadata tables of Hugging Face ImageFolder."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

MAX_TEXT_BYTES = 16 << 20
CAPTION_NAMES = ("caption", "text")
METADATA_NAMES = ("metadata.jsonl", "metadata.csv")


class Metadata(NamedTuple):
    """rows: JSON text by picture, as a path below the table's folder; problems: line -> what is wrong with it."""

    rows: dict[str, str]
    problems: dict[int, str]


def as_text(content: bytes, where: str) -> str:
    """Raises: ValueError naming `where` if it is no UTF-8 text, or too long."""
    if len(content) > MAX_TEXT_BYTES:
        raise ValueError(f"{where}: expected at most {MAX_TEXT_BYTES} bytes of text, got {len(content)}")
    try:
        return content.decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise ValueError(f"{where}: expected text in UTF-8, got {error}; convert it") from error


def as_json(text: str, where: str) -> Any:
    """Raises: ValueError naming `where` if it is no JSON."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: expected JSON, got {error}") from error


def caption_in(value: Any) -> str | None:
    """The text under `caption` or `text` of a JSON object, as far as UTF-8 can hold it."""
    if isinstance(value, dict):
        for name in CAPTION_NAMES:
            if isinstance(value.get(name), str):
                return str(value[name]).encode("utf-8", "backslashreplace").decode()
    return None


def read_metadata(path: Path) -> Metadata:
    """A table with a column file_name; a row that makes no sense is a problem of its line (0 = the whole file)."""
    found = Metadata({}, {})
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        found.problems[0] = f"{path.name}: expected text in UTF-8, got {type(error).__name__}: {error}"
        return found
    for line, row in _csv_rows(text, path.name) if path.suffix == ".csv" else _json_rows(text, path.name):
        if isinstance(row, str):
            found.problems[line] = row
            continue
        name = PurePosixPath(str(row["file_name"])).as_posix()
        if name in found.rows:
            found.problems[line] = f"{path.name} line {line}: a second row for {name}, the first one counts"
        else:
            found.rows[name] = json.dumps(row)
    return found


def _json_rows(text: str, name: str) -> Iterator[tuple[int, dict[str, Any] | str]]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        where = f"{name} line {number}"
        try:
            row = as_json(line, where)
        except ValueError as error:
            yield number, str(error)
            continue
        if isinstance(row, dict) and isinstance(row.get("file_name"), str):
            yield number, row
        else:
            yield number, f"{where}: expected a JSON object with file_name"


def _csv_rows(text: str, name: str) -> Iterator[tuple[int, dict[str, Any] | str]]:
    reader = csv.DictReader(text.splitlines(keepends=True), strict=True)
    try:
        if "file_name" not in (reader.fieldnames or ()):
            yield 1, f"{name} line 1: expected a column file_name, got {reader.fieldnames}"
            return
        for row in reader:
            if None in row or None in row.values():
                yield reader.line_num, f"{name} line {reader.line_num}: expected {len(reader.fieldnames or ())} values"
            else:
                yield reader.line_num, row
    except csv.Error as error:  # what follows cannot be told apart any more
        yield reader.line_num, f"{name} line {reader.line_num}: expected CSV, got {error}; the rest is not read"
