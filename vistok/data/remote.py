"""Where the parts of a token store lie behind a URL that fsspec knows: ranges are read, no file is fetched whole.

A shard costs two range reads for its header and one for its offsets; tokens of many samples are one `cat_ranges`.
What fails for a moment is tried again. An object is put whole or not at all, so nothing is moved into its place.
"""

import errno
import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
from fsspec.core import url_to_fs

from vistok.data.local_files import read_row_schema, read_rows
from vistok.data.local_write import Listed
from vistok.data.retry import Backoff, http_status, is_transient
from vistok.data.shard_header import REMEDY, Extent
from vistok.data.shard_reader import Array, Span

_BLOCK = 1 << 22
_WRITE_SECONDS, _SLOWEST = 120.0, 1e6  # how long a write may take: a start, and bytes per second
_TAKEN = (409, 412)  # answers of S3 to "only if there is none"
_T = TypeVar("_T")
_TIMES = ("LastModified", "mtime", "modified", "created", "last_modified", "updated")  # as file systems call it


class RemoteFiles:
    """A folder behind a URL. Paths are given relative to it, with slashes."""

    mapped = False

    def __init__(self, url: str, backoff: Backoff | None = None) -> None:
        """Raises: ValueError for a scheme that fsspec does not know, ImportError naming the package that it needs."""
        self.url = url.rstrip("/")
        self.backoff = backoff or Backoff()
        self.place()

    @property
    def name(self) -> str:
        """What errors call it."""
        return self.url

    @property
    def in_this_process_only(self) -> bool:
        """Whether other processes find nothing behind the URL."""
        return "memory" in _protocols(self.place()[0])

    def contents(self, paths: Sequence[str]) -> list[bytes | None]:
        """Each file whole, None where there is none."""
        found: list[Any] = [None] * len(paths)
        left = list(range(len(paths)))
        for attempt in range(1, self.backoff.attempts + 1):
            fs, root = self.place()
            nothing = [None] * len(left)
            # Not fs.cat, which takes brackets in a path for a pattern.
            answers = fs.cat_ranges([f"{root}/{paths[at]}" for at in left], nothing, nothing, on_error="return")
            for at, answer in zip(left, answers, strict=True):
                found[at] = None if isinstance(answer, FileNotFoundError) else answer
            failed = [at for at in left if isinstance(found[at], Exception)]
            left = [at for at in failed if is_transient(found[at])]
            if len(left) < len(failed) or not left or attempt == self.backoff.attempts:
                break
            self.backoff.wait(attempt)
        for path, content in zip(paths, found, strict=True):
            if isinstance(content, Exception):
                raise OSError(f"{self.url}/{path}: expected a readable file, got {_said(content)}") from content
        return found

    def rows(self, path: str, columns: Sequence[str] | None = None) -> pa.Table:
        """A parquet file, some of its columns or all. Raises: ValueError naming the file if it is none."""
        return self._opened(path, lambda file: read_rows(file, f"{self.url}/{path}", columns))

    def row_schema(self, path: str) -> pa.Schema:
        """The columns of a parquet file. Raises: FileNotFoundError, ValueError naming the file."""
        return self._opened(path, lambda file: read_row_schema(file, f"{self.url}/{path}"))

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
        fs, root = self.place()
        names, starts, stops = zip(*asked, strict=True)
        paths = [f"{root}{name.removeprefix(self.url)}" for name in names]
        found: list[bytes] = self.backoff.run(lambda: fs.cat_ranges(paths, list(starts), list(stops), on_error="raise"))
        for (name, start, stop), content in zip(asked, found, strict=True):
            if len(content) != stop - start:
                raise ValueError(f"{name}: expected bytes {start}..{stop}, got {len(content)} of them; {REMEDY}")
        return found

    def info(self, name: str) -> dict[str, Any]:
        """What the server says of a file given by name. Raises: FileNotFoundError; what the file system raises."""
        fs, root = self.place()

        def ask() -> dict[str, Any]:
            fs.invalidate_cache()  # others write there
            found: dict[str, Any] = fs.info(f"{root}{name.removeprefix(self.url)}")
            return found

        return self.backoff.run(ask)

    def size(self, name: str) -> int:
        """Bytes of a file. Raises: FileNotFoundError naming it."""
        try:
            return int(self.info(name)["size"])
        except FileNotFoundError as error:
            raise _missing(name) from error

    def size_of(self, path: str) -> int | None:
        """Bytes of an object, None if there is none."""
        try:
            return self.size(f"{self.url}/{path}")
        except FileNotFoundError:
            return None

    def digest(self, path: str) -> tuple[str, int] | None:
        """sha256 (hex) and size of a file, None if there is none."""

        def read(file: Any) -> tuple[str, int]:
            found, size = hashlib.sha256(), 0
            while block := file.read(_BLOCK):
                found.update(block)
                size += len(block)
            return found.hexdigest(), size

        try:
            return self._opened(path, read)
        except FileNotFoundError:
            return None

    def listed(self, folder: str) -> list[Listed]:
        """What is in a folder below, by name; nothing if there is none. Raises: OSError naming it."""
        fs, root = self.place()
        place = root if folder == "." else f"{root}/{folder}"

        def ask() -> list[dict[str, Any]]:
            fs.invalidate_cache()  # others write there
            found: list[dict[str, Any]] = fs.ls(place, detail=True)
            return found

        try:
            infos = self.backoff.run(ask)
        except FileNotFoundError:
            return []
        except Exception as error:
            raise self._failed(folder, "listed", error) from error
        own = [place.rstrip("/"), place.strip("/")]
        if len(infos) == 1 and infos[0]["name"].rstrip("/") in own and infos[0]["type"] == "file" and infos[0]["size"]:
            raise NotADirectoryError(f"{self.url}/{folder}: expected a folder, got an object")
        named = [info for info in infos if info["name"].rstrip("/") not in own]  # some list a marker of the folder too
        return sorted(
            Listed(info["name"].rstrip("/").split("/")[-1], int(info["size"] or 0), _time(info), info["type"] == "file")
            for info in named
        )

    def put(self, path: str, content: bytes, attempt: int = 1) -> None:
        """Write a whole object or none of it. Raises: OSError naming it."""
        self._write(path, content, "overwrite")

    def create(self, path: str, content: bytes) -> None:
        """Write an object where there is none, or the same, as far as the store can tell (S3 and GCS can).

        Raises: FileExistsError; OSError naming it.
        """
        self._write(path, content, "create")

    def move(self, source: str, target: str) -> None:
        """Give an object another name, inside of the server. Raises: OSError naming it."""
        fs, root = self.place()
        fs.invalidate_cache()  # another process may have written it since a listing
        try:
            self.backoff.run(lambda: fs.cp_file(f"{root}/{source}", f"{root}/{target}"))
        except Exception as error:
            raise self._failed(target, "written", error) from error
        self.remove(source)

    def remove(self, path: str) -> None:
        """Delete an object if there is one. Raises: OSError naming it."""
        fs, root = self.place()
        try:
            self.backoff.run(lambda: fs.rm_file(f"{root}/{path}"))
        except FileNotFoundError:
            return
        except Exception as error:
            raise self._failed(path, "deleted", error) from error

    def next_attempt(self, paths: Sequence[str]) -> int:
        """1: an attempt that was cut off leaves nothing that could be counted."""
        return 1

    @contextmanager
    def held(self, *, exclusive: bool) -> Iterator[None]:
        """An object store has no locks: those who add write the same bytes, and what deletes goes by age."""
        yield

    def _write(self, path: str, content: bytes, mode: str) -> None:
        fs, root = self.place()
        if "memory" in _protocols(fs):
            fs.makedirs(f"{root}/{path}".rpartition("/")[0], exist_ok=True)
        # A server that neither takes the rest nor answers would be waited for without end.
        limit = {"timeout": _WRITE_SECONDS + len(content) / _SLOWEST} if getattr(fs, "async_impl", False) else {}
        try:
            self.backoff.run(lambda: fs.pipe_file(f"{root}/{path}", content, mode=mode, **limit))
        except Exception as error:
            if mode != "create" or not (isinstance(error, FileExistsError) or http_status(error) in _TAKEN):
                raise self._failed(path, "written", error) from error
            # A request that seemed to fail, and was repeated, may have been carried out.
            if self.contents([path]) != [content]:
                raise FileExistsError(f"{self.url}/{path}: expected no such object") from error

    def _opened(self, path: str, read: Callable[[Any], _T]) -> _T:
        fs, root = self.place()

        def ask() -> _T:
            with fs.open(f"{root}/{path}", "rb") as file:
                watched = _Watched(file)
                try:
                    return read(watched)
                except ValueError as error:
                    # What could not be read is no fault of what is in the file.
                    raise watched.failed or error from None

        try:
            return self.backoff.run(ask)
        except FileNotFoundError as error:
            raise _missing(f"{self.url}/{path}") from error
        except ValueError:
            raise
        except Exception as error:
            raise self._failed(path, "read", error) from error

    def _failed(self, path: str, done: str, error: Exception) -> OSError:
        number = error.errno if isinstance(error, OSError) else None
        said = f"cannot be {done}, {_said(error)}; run the same command again when that is mended"
        return OSError(number or errno.EIO, said, f"{self.url}/{path}")

    def place(self) -> tuple[Any, str]:
        """The file system, and the folder's path in it."""
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


class _Watched:
    """A file open for reading that remembers why it could not be read."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self.failed: Exception | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def read(self, size: int = -1) -> bytes:
        try:
            content: bytes = self._file.read(size)
        except Exception as error:
            self.failed = error
            raise
        return content


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


def _protocols(fs: Any) -> tuple[str, ...]:
    return (fs.protocol,) if isinstance(fs.protocol, str) else tuple(fs.protocol)


def _time(info: dict[str, Any]) -> float:
    """When an object was last written, seconds since 1970; of one that says nothing: long ago."""
    value = next((info[name] for name in _TIMES if info.get(name)), 0.0)
    if isinstance(value, str):
        value = datetime.fromisoformat(value)
    return value.timestamp() if isinstance(value, datetime) else float(value)


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
