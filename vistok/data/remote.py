"""Where the parts of a token store lie behind a URL that fsspec knows: ranges are read, no file is fetched whole.

A shard costs two range reads for its header and one for its offsets; tokens of many samples are one `cat_ranges`.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from fsspec.core import url_to_fs

from vistok.data.local_files import read_rows
from vistok.data.shard_header import REMEDY, Extent
from vistok.data.shard_reader import Array, Span


class RemoteFiles:
    """A folder behind a URL. Paths are given relative to it, with slashes."""

    mapped = False

    def __init__(self, url: str) -> None:
        """Raises: ValueError for a scheme that fsspec does not know, ImportError naming the package that it needs."""
        self.url = url.rstrip("/")
        self._place()

    def contents(self, paths: Sequence[str]) -> list[bytes | None]:
        """Each file whole, None where there is none."""
        fs, root = self._place()
        # Not fs.cat, which takes brackets in a path for a pattern.
        nothing = [None] * len(paths)
        found = fs.cat_ranges([f"{root}/{path}" for path in paths], nothing, nothing, on_error="return")
        for path, content in zip(paths, found, strict=True):
            if isinstance(content, Exception) and not isinstance(content, FileNotFoundError):
                raise OSError(f"{self.url}/{path}: expected a readable file, got {content}") from content
        return [None if isinstance(content, Exception) else content for content in found]

    def rows(self, path: str, columns: Sequence[str] | None = None) -> pa.Table:
        """A parquet file, some of its columns or all. Raises: ValueError naming the file if it is none."""
        fs, root = self._place()
        try:
            with fs.open(f"{root}/{path}", "rb") as file:
                return read_rows(file, f"{self.url}/{path}", columns)
        except FileNotFoundError as error:
            raise _missing(f"{self.url}/{path}") from error

    def tensors(self, path: str) -> "RangedFile":
        """A safetensors file. Raises: FileNotFoundError naming it."""
        return RangedFile(self, path)

    def fetch(self, spans: Sequence[Span]) -> list[Array]:
        """The values of each span, read-only, all by one request to the file system."""
        asked = [span for span in spans if span.part.values is None and span.stop > span.start]
        ranges = [_byte_range(span.part.extent, span.start, span.stop) for span in asked]
        answers = iter(
            self.ranges([(span.part.file.name, *range_) for span, range_ in zip(asked, ranges, strict=True)])
        )
        return [
            part.values[start:stop]
            if part.values is not None
            else _array(next(answers) if stop > start else b"", part.extent, stop - start)
            for part, start, stop in spans
        ]

    def ranges(self, asked: Sequence[tuple[str, int, int]]) -> list[bytes]:
        """Bytes start..stop of files given by name. Raises: FileNotFoundError, ValueError if a file is shorter."""
        if not asked:
            return []
        fs, root = self._place()
        names, starts, stops = zip(*asked, strict=True)
        paths = [f"{root}{name.removeprefix(self.url)}" for name in names]
        found: list[bytes] = fs.cat_ranges(paths, list(starts), list(stops), on_error="raise")
        for (name, start, stop), content in zip(asked, found, strict=True):
            if len(content) != stop - start:
                raise ValueError(f"{name}: expected bytes {start}..{stop}, got {len(content)} of them; {REMEDY}")
        return found

    def size(self, name: str) -> int:
        """Bytes of a file. Raises: FileNotFoundError naming it."""
        fs, root = self._place()
        try:
            return int(fs.size(f"{root}{name.removeprefix(self.url)}"))
        except FileNotFoundError as error:
            raise _missing(name) from error

    def _place(self) -> tuple[Any, str]:
        # Asked for each time (fsspec keeps them): a file system must not be carried into a forked process.
        try:
            fs, root = url_to_fs(self.url)
        except ValueError as error:
            raise ValueError(
                f"{self.url}: expected a folder or a URL of a scheme that fsspec knows; {error}"
            ) from error
        except ImportError as error:
            raise ImportError(f"{self.url}: reading this needs another package: {error}") from error
        return fs, root


class RangedFile:
    """A file of which ranges are read when they are asked for."""

    mapped = False

    def __init__(self, files: RemoteFiles, path: str) -> None:
        self.name = f"{files.url}/{path}"
        self._files = files
        self.size = files.size(self.name)

    def read(self, start: int, stop: int) -> bytes:
        """Bytes start..stop."""
        return self._files.ranges([(self.name, start, stop)])[0] if stop > start else b""

    def array(self, extent: Extent, start: int, stop: int) -> Array:
        """Entries start..stop of a tensor, by one range read."""
        return _array(self.read(*_byte_range(extent, start, stop)), extent, stop - start)


def _byte_range(extent: Extent, start: int, stop: int) -> tuple[int, int]:
    return extent.start + start * extent.row_bytes, extent.start + stop * extent.row_bytes


def _array(content: bytes, extent: Extent, count: int) -> Array:
    return np.frombuffer(content, extent.dtype).reshape(count, *extent.shape[1:])


def _missing(name: str) -> FileNotFoundError:
    return FileNotFoundError(f"{name}: expected this file beside its commit record; {REMEDY}")
