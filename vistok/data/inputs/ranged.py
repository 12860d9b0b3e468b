"""Files of an input of which ranges are read, on a disk or behind a URL; none is fetched whole."""

import io
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from vistok.data.inputs.files import version_of
from vistok.data.inputs.marks import version_of_object
from vistok.data.remote import RemoteFiles

# Headers of a tar are found one behind the other. Over a network a larger range takes hardly longer than a small one,
# so pictures smaller than this are passed over within one request.
_AHEAD = 1 << 18


class Ranged(Protocol):
    """size, version: of the whole file; the version changes when the file does."""

    @property
    def size(self) -> int: ...

    @property
    def version(self) -> int: ...

    def read(self, size: int, offset: int) -> bytes:
        """`size` bytes from `offset` on, fewer at the end of the file."""
        ...

    def read_many(self, spans: Sequence[tuple[int, int]]) -> list[bytes]:
        """For each (size, offset) as `read`, all at once where that is quicker."""
        ...

    def walked(self) -> "Ranged":
        """The same file for many small reads from its start to its end."""
        ...


class LocalRanged:
    """A file descriptor."""

    def __init__(self, file: int) -> None:
        self._file = file
        state = os.fstat(file)
        self.size, self.version = state.st_size, version_of(state)

    def read(self, size: int, offset: int) -> bytes:
        """`size` bytes from `offset` on, fewer at the end of the file."""
        parts: list[bytes] = []
        left = size
        while left and (part := os.pread(self._file, left, offset + size - left)):
            parts.append(part)
            left -= len(part)
        return b"".join(parts)

    def read_many(self, spans: Sequence[tuple[int, int]]) -> list[bytes]:
        """For each (size, offset) as `read`."""
        return [self.read(size, offset) for size, offset in spans]

    def walked(self) -> "LocalRanged":
        """The same: the system reads ahead."""
        return self


class RemoteFile:
    """An object behind a URL. What is known of it (size, version) is asked for once."""

    def __init__(self, files: RemoteFiles, name: str) -> None:
        self._files, self._name = files, name

    def __str__(self) -> str:
        return f"{self._files.url}/{self._name}"

    @cached_property
    def _info(self) -> dict[str, Any]:
        try:
            return self._files.info(str(self))
        except FileNotFoundError as error:
            raise FileNotFoundError(f"no such object: {self}") from error
        except Exception as error:
            raise OSError(f"{self}: cannot be read, {type(error).__name__}: {error}") from error

    @property
    def size(self) -> int:
        """Bytes. Raises: FileNotFoundError; OSError if the server does not say."""
        size = self._info.get("size")
        if size is None:
            raise OSError(f"{self}: expected a server that tells the size and serves ranges; copy the file to a disk")
        return int(size)

    @property
    def version(self) -> int:
        """Of what the server says of it: size, checksum, time."""
        return version_of_object([self._info])

    def read(self, size: int, offset: int) -> bytes:
        """`size` bytes from `offset` on, fewer at the end of the file, by one request."""
        return self.read_many([(size, offset)])[0]

    def read_many(self, spans: Sequence[tuple[int, int]]) -> list[bytes]:
        """For each (size, offset) as `read`, by requests side by side. Raises: ValueError, OSError naming it."""
        cut = [(offset, min(offset + size, self.size)) for size, offset in spans]
        try:
            answers = iter(self._files.ranges([(str(self), *span) for span in cut if span[0] < span[1]]))
        except FileNotFoundError:
            raise
        except ValueError as error:
            raise ValueError(
                f"{self}: expected the bytes that were asked for, got more or fewer; the server serves no ranges, or "
                "the file has changed: copy it to a disk, or plan again"
            ) from error
        except Exception as error:
            raise OSError(f"{self}: cannot be read, {type(error).__name__}: {error}") from error
        return [next(answers) if start < stop else b"" for start, stop in cut]

    def walked(self) -> "Ranged":
        """The same file, read ahead."""
        return _ReadAhead(self)

    def stream(self) -> "io.RawIOBase":
        """As a file object that seeks."""
        return _Stream(self)


class _ReadAhead:
    def __init__(self, file: RemoteFile) -> None:
        self._file = file
        self.size, self.version = file.size, file.version
        self._start, self._held = 0, b""

    def read(self, size: int, offset: int) -> bytes:
        if not self._start <= offset <= offset + size <= self._start + len(self._held):
            self._start, self._held = offset, self._file.read(max(size, _AHEAD), offset)
        return self._held[offset - self._start : offset - self._start + size]

    def read_many(self, spans: Sequence[tuple[int, int]]) -> list[bytes]:
        return [self.read(size, offset) for size, offset in spans]

    def walked(self) -> "Ranged":
        return self


class _Stream(io.RawIOBase):
    def __init__(self, file: RemoteFile) -> None:
        super().__init__()
        self._file, self._at = file, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._file.size}[whence] + offset
        return self._at

    def readinto(self, buffer: Any) -> int:
        content = self._file.read(len(buffer), self._at)
        buffer[: len(content)] = content
        self._at += len(content)
        return len(content)


Place = Path | RemoteFile


@contextmanager
def ranged(place: Place) -> Iterator[Ranged]:
    """Open a file of an input. Raises: OSError."""
    if isinstance(place, RemoteFile):
        yield place
        return
    # Not kept open: a descriptor could be closed under another thread, and opening costs microseconds.
    file = os.open(place, os.O_RDONLY | os.O_NONBLOCK)  # a pipe would wait for a writer
    try:
        yield LocalRanged(file)
    finally:
        os.close(file)


def version_at(place: Place) -> int:
    """The version of a file of an input. Raises: OSError."""
    return place.version if isinstance(place, RemoteFile) else version_of(os.stat(place))


def size_at(place: Place) -> int:
    """Bytes of a file of an input. Raises: OSError."""
    return place.size if isinstance(place, RemoteFile) else os.stat(place).st_size


def read_at(file: Ranged, size: int, offset: int) -> bytes:
    """`size` bytes from `offset` on. Raises: ValueError if the file ends before."""
    return whole(file.read(size, offset), size, offset)


def whole(content: bytes, size: int, offset: int) -> bytes:
    """`content`. Raises: ValueError if it is shorter than asked for."""
    if len(content) < size:
        left = size - len(content)
        raise ValueError(f"expected {size} bytes from byte {offset} on, the file ends {left} bytes before")
    return content


class FileList(Protocol):
    """Files of an input by name, in a folder or below a URL, see `Files`."""

    @property
    def names(self) -> tuple[str, ...]: ...

    @property
    def problems(self) -> tuple[Any, ...]: ...

    @property
    def left_out(self) -> tuple[tuple[str, int], ...]: ...

    @property
    def path(self) -> Callable[[str], Place]: ...
