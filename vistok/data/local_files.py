"""Where the parts of a token store lie in a local folder; its shards are mapped, not read."""

import hashlib
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from vistok.data.local_write import LocalWrites
from vistok.data.shard_header import REMEDY, Extent
from vistok.data.shard_reader import Array, Span


class LocalFiles(LocalWrites):
    """A folder. Paths are given relative to it, with slashes."""

    mapped = True

    def contents(self, paths: Sequence[str]) -> list[bytes | None]:
        """Each file whole, None where there is none."""
        found: list[bytes | None] = [None] * len(paths)
        for at, path in enumerate(paths):
            with suppress(FileNotFoundError, NotADirectoryError), open(os.path.join(self.root, path), "rb") as file:
                found[at] = file.read()
        return found

    def rows(self, path: str, columns: Sequence[str] | None = None) -> pa.Table:
        """A parquet file, some of its columns or all. Raises: ValueError naming the file if it is none."""
        return read_rows(self.root / path, str(self.root / path), columns)

    def row_schema(self, path: str) -> pa.Schema:
        """The columns of a parquet file. Raises: FileNotFoundError, ValueError naming the file."""
        return read_row_schema(self.root / path, str(self.root / path))

    def size_of(self, path: str) -> int | None:
        """Bytes of a file, None if there is none."""
        with suppress(FileNotFoundError):
            return (self.root / path).stat().st_size
        return None

    def digest(self, path: str) -> tuple[str, int] | None:
        """sha256 (hex) and size of a file, None if there is none."""
        file = self.root / path
        if not file.is_file():
            return None
        with open(file, "rb") as content:
            return hashlib.file_digest(content, "sha256").hexdigest(), os.fstat(content.fileno()).st_size

    def tensors(self, path: str) -> "MappedFile":
        """A safetensors file. Raises: FileNotFoundError naming it."""
        return MappedFile(os.path.join(self.root, path))

    def fetch(self, spans: Sequence[Span]) -> list[Array]:
        """The values of each span, read-only views of the mapped files."""
        return [part.values[start:stop] for part, start, stop in spans]  # type: ignore[index]


class MappedFile:
    """A file mapped read-only; no part of it is in memory before it is used."""

    mapped = True

    def __init__(self, path: str | Path) -> None:
        """Raises: FileNotFoundError, OSError naming the file."""
        self.name = str(path)
        try:
            self.size = os.stat(path).st_size
            # Not np.memmap, which keeps every file open: a store may have more shards than a process may have files.
            self._bytes = torch.from_file(self.name, shared=False, size=self.size, dtype=torch.uint8).numpy()
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{path}: expected this file beside its commit record; {REMEDY}") from error
        except RuntimeError as error:
            raise OSError(f"{path}: expected a file that can be mapped, got {error}") from error
        self._bytes.flags.writeable = False

    def read(self, start: int, stop: int) -> bytes:
        """Bytes start..stop."""
        return self._bytes[start:stop].tobytes()

    def array(self, extent: Extent, start: int, stop: int) -> Array:
        """Entries start..stop of a tensor, not copied."""
        return self._bytes[extent.start : extent.stop].view(extent.dtype).reshape(extent.shape)[start:stop]


def read_rows(file: Any, name: str, columns: Sequence[str] | None) -> pa.Table:
    """Columns of a parquet file (a path, or a file open for reading bytes); `name` is what errors call it.

    Raises: FileNotFoundError; ValueError if it is no parquet file or lacks a column.
    """
    try:
        # Not pq.read_table, which makes columns out of folder names such as split=train.
        with pq.ParquetFile(file) as rows:
            table = rows.read(columns=None if columns is None else list(columns))
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{name}: expected this file beside its commit record; {REMEDY}") from error
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{name}: expected parquet, got {error}; {REMEDY}") from error
    missing = [column for column in columns or () if column not in table.column_names]
    if missing:
        raise ValueError(f"{name}: expected columns {', '.join(missing)}, got {table.column_names}; {REMEDY}")
    return table


def read_row_schema(file: Any, name: str) -> pa.Schema:
    """Columns of a parquet file; `name` is what errors call it. Raises: FileNotFoundError; ValueError if it is none."""
    try:
        return pq.read_schema(file)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{name}: expected this file beside its commit record; {REMEDY}") from error
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{name}: expected parquet, got {error}; {REMEDY}") from error
