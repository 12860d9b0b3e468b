"""Pictures in the Arrow streams of a Hugging Face data set that `save_to_disk` wrote, read through a memory map.

Without the `datasets` library, which writes into the user's home when it is imported.
"""

import json
from bisect import bisect_right
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path
from typing import Any

import pyarrow as pa

from vistok.data.inputs.files import Files, collect
from vistok.data.inputs.tables import TableInput

_STATE, _SPLITS = "state.json", "dataset_dict.json"


class ArrowTable:
    """One stream of record batches. May be shared by threads."""

    def __init__(self, path: Path) -> None:
        """Raises: ValueError, OSError, pyarrow.ArrowException if it is no whole stream."""
        if path.stat().st_size == 0:
            raise ValueError("expected an Arrow stream, got an empty file")
        with pa.ipc.open_stream(pa.memory_map(str(path))) as reader:
            self._schema = reader.schema
            self._batches = list(reader)
        for batch in self._batches:
            batch.validate()
        self._starts: list[int] = [0, *accumulate(batch.num_rows for batch in self._batches)]

    @property
    def schema(self) -> pa.Schema:
        """Columns of the file."""
        return self._schema

    @property
    def num_rows(self) -> int:
        """Rows of the file."""
        return self._starts[-1]

    def values(self, column: str) -> Iterator[Any]:
        """One column, from the first row to the last."""
        for batch in self._batches:
            values = batch.column(column)
            values.validate(full=True)
            yield from values.to_pylist()

    def batch(self, row: int, columns: list[str]) -> tuple[pa.RecordBatch, int]:
        """A batch of `row` alone, and 0. Raises: ValueError if its offsets lead out of the file."""
        number = bisect_right(self._starts, row) - 1
        if not 0 <= number < len(self._batches):
            raise ValueError(f"expected a row below {self.num_rows}, got {row}")
        batch = self._batches[number].select(columns).slice(row - self._starts[number], 1)
        for column in batch.columns:  # Arrow believes offsets, and would read whatever they point at
            for part in column.flatten() if pa.types.is_struct(column.type) else [column]:
                part.validate(full=True)
        return batch, 0


def is_dataset(folder: Path) -> bool:
    """Whether `save_to_disk` wrote the folder."""
    return (folder / _STATE).is_file() or (folder / _SPLITS).is_file()


def dataset_input(
    folder: Path,
    *,
    image: str | None = None,
    caption: str | None = None,
    key: str | None = None,
    split: str | None = None,
) -> TableInput:
    """The rows of a saved data set, or of one split of a saved DatasetDict.

    Raises: ValueError naming the splits if one must be chosen; ValueError, OSError if the folder is damaged.
    """
    if (folder / _SPLITS).is_file():
        return _table_input(_dataset_files(folder, _chosen_split(folder, split)), image, caption, key)
    if split is not None:
        raise ValueError(f"{folder}: split={split!r} was given, but this data set is not cut into splits; leave it out")
    return _table_input(_dataset_files(folder, ""), image, caption, key)


def stream_input(
    files: Files, *, image: str | None = None, caption: str | None = None, key: str | None = None
) -> TableInput:
    """The rows of the .arrow streams among `files`."""
    return _table_input(files, image, caption, key)


def _table_input(files: Files, image: str | None, caption: str | None, key: str | None) -> TableInput:
    return TableInput(files, ".arrow", ArrowTable, image, caption, key)


def _chosen_split(folder: Path, split: str | None) -> str:
    splits = _json_of(folder / _SPLITS).get("splits")
    if not isinstance(splits, list) or not all(isinstance(name, str) and _is_plain(name) for name in splits):
        raise ValueError(f"{folder / _SPLITS}: expected a list of splits, got {splits!r:.200}")
    if split not in splits:
        given = "none was given" if split is None else f"got {split!r}"
        raise ValueError(f"{folder}: expected split= one of {', '.join(splits)}, {given}")
    return str(split)


def _dataset_files(folder: Path, split: str) -> Files:
    state = _json_of(folder / split / _STATE)
    if state.get("_indices_data_files"):
        raise ValueError(f"{folder / split}: expected rows in order, got a table of indices; `flatten_indices` first")
    listed = state.get("_data_files")
    names = [file.get("filename") for file in listed if isinstance(file, dict)] if isinstance(listed, list) else [None]
    if not all(isinstance(name, str) and _is_plain(name) for name in names):
        raise ValueError(f"{folder / split / _STATE}: expected names of files beside it, got {listed!r:.200}")
    return collect(folder, [str(Path(split, str(name))) for name in names])


def _is_plain(name: str) -> bool:
    return Path(name).name == name and name != ".."


def _json_of(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: expected JSON, got {error}; save the data set again") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path}: expected a JSON object, got {type(value).__name__}; save the data set again")
    return value
