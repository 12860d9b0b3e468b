"""Whole shards of a store behind a URL in a local folder: fetched once, checked, the longest unused deleted first.

Several processes may share the folder. A file that another one deletes is fetched again when it is next read.
"""

import fcntl
import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import pyarrow as pa

from vistok.data.local_files import read_row_schema, read_rows
from vistok.data.remote import RemoteFiles
from vistok.data.shard_header import REMEDY, Extent
from vistok.data.shard_reader import Array, Span

_T = TypeVar("_T")
_LOCK = ".lock"
_TRIES = 5  # a file may be deleted between fetching and opening it


@dataclass(frozen=True)
class ShardCache:
    """folder: where the shards are kept, for any number of stores. max_bytes: of all files in it together."""

    folder: str | Path
    max_bytes: int = 20 << 30

    def __post_init__(self) -> None:
        """Raises: ValueError."""
        if self.max_bytes < 1:
            raise ValueError(f"cache: expected max_bytes >= 1, got {self.max_bytes}")


class CachedFiles(RemoteFiles):
    """A store behind a URL, its data files read from a cache. sha256: of each data file, by name, as committed."""

    def __init__(self, url: str, cache: ShardCache, sha256: Mapping[str, str]) -> None:
        super().__init__(url)
        self._cache, self._sha256 = cache, sha256
        self._folder = Path(cache.folder)
        self._checked: set[str] = set()  # by this process
        self._folder.mkdir(parents=True, exist_ok=True)

    def rows(self, path: str, columns: Sequence[str] | None = None) -> pa.Table:
        """A parquet file, some of its columns or all. Raises: ValueError naming the file."""
        return self.using(path, lambda file: read_rows(file, f"{self.url}/{path}", columns))

    def row_schema(self, path: str) -> pa.Schema:
        """The columns of a parquet file."""
        return self.using(path, lambda file: read_row_schema(file, f"{self.url}/{path}"))

    def tensors(self, path: str) -> "CachedFile":  # type: ignore[override]
        """A safetensors file."""
        return CachedFile(self, path)

    def fetch(self, spans: Sequence[Span]) -> list[Array]:
        """The values of each span, read-only."""
        return [
            part.values[start:stop] if part.values is not None else part.file.array(part.extent, start, stop)
            for part, start, stop in spans
        ]

    def using(self, path: str, read: Callable[[Path], _T]) -> _T:
        """What `read` makes of a data file, which is fetched if it is not there.

        Raises: FileNotFoundError, ValueError if it is not what was committed or larger than the cache; OSError.
        """
        digest = self._sha256[path.split("/")[-1]]
        file = self._folder / f"{digest}{Path(path).suffix}"
        for _ in range(_TRIES):
            if not self._is_sound(file, digest):
                self._bring(path, file, digest)
            try:
                found = read(file)
                os.utime(file)  # used now
                return found
            except FileNotFoundError:  # another process made room
                continue
        raise OSError(
            f"{self._folder}: expected room for what is read at once, files are deleted before they can be read; raise "
            f"the cache's max_bytes above {self._cache.max_bytes}"
        )

    def _is_sound(self, file: Path, digest: str) -> bool:
        if not file.exists():
            return False
        if digest not in self._checked:
            try:
                with open(file, "rb") as content:
                    if hashlib.file_digest(content, "sha256").hexdigest() != digest:
                        return False
            except FileNotFoundError:
                return False
            self._checked.add(digest)
        return True

    def _bring(self, path: str, file: Path, digest: str) -> None:
        temporary = file.with_name(f"{file.name}.tmp.{os.getpid()}")
        size = self.size(f"{self.url}/{path}")
        if size > self._cache.max_bytes:
            raise ValueError(
                f"{self.url}/{path}: expected a file of at most {self._cache.max_bytes} bytes, the size of the cache, "
                f"got {size}; raise max_bytes, or read without a cache"
            )
        with self._locked():
            self._make_room(size)
        try:
            fs, root = self.place()
            self.backoff.run(lambda: fs.get_file(f"{root}/{path}", str(temporary)))
            with open(temporary, "rb") as content:
                found = hashlib.file_digest(content, "sha256").hexdigest()
            if found != digest:
                raise ValueError(
                    f"{self.url}/{path}: sha256 is {found[:16]}, the commit record says {digest[:16]}; {REMEDY}"
                )
            temporary.replace(file)
            self._checked.add(digest)
        finally:
            temporary.unlink(missing_ok=True)

    def _make_room(self, size: int) -> None:
        states = []
        for file in self._folder.iterdir():
            try:
                state = file.stat()
            except FileNotFoundError:
                continue
            if file.name != _LOCK:
                states.append((state.st_mtime_ns, state.st_size, file))
        used = sum(bytes_there for _, bytes_there, _ in states)
        for _, bytes_there, file in sorted(states):
            if used + size <= self._cache.max_bytes:
                return
            file.unlink(missing_ok=True)
            used -= bytes_there

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with open(self._folder / _LOCK, "wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


class CachedFile:
    """A safetensors file in the cache, neither open nor mapped between two reads: deleting it frees its bytes."""

    mapped = False

    def __init__(self, files: CachedFiles, path: str) -> None:
        self.name = f"{files.url}/{path}"
        self._files, self._path = files, path
        self.size = files.using(path, lambda file: file.stat().st_size)

    def read(self, start: int, stop: int) -> bytes:
        """Bytes start..stop."""

        def cut(file: Path) -> bytes:
            with open(file, "rb", buffering=0) as content:
                return os.pread(content.fileno(), stop - start, start)

        return self._files.using(self._path, cut) if stop > start else b""

    def array(self, extent: Extent, start: int, stop: int) -> Array:
        """Entries start..stop of a tensor."""
        content = self.read(extent.start + start * extent.row_bytes, extent.start + stop * extent.row_bytes)
        return np.frombuffer(content, extent.dtype).reshape(stop - start, *extent.shape[1:])
