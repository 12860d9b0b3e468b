"""Write into a folder that other processes read and write: whole files or none, and a lock for what deletes."""

import fcntl
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple


class Listed(NamedTuple):
    """What a folder holds under a name: plain = a file, reached through no link. modified: seconds since 1970."""

    name: str
    bytes: int
    modified: float
    plain: bool


class LocalWrites:
    """A folder to write into. Paths are given relative to it, with slashes."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @property
    def name(self) -> str:
        """What errors call it."""
        return str(self.root)

    def listed(self, folder: str) -> list[Listed]:
        """What is in a folder below, by name; nothing if there is none. Raises: NotADirectoryError, OSError."""
        place = self.root / folder
        reached = folder == "." or not place.is_symlink()
        try:
            entries = sorted(os.scandir(place), key=lambda entry: entry.name)
        except FileNotFoundError:
            return []
        states = [entry.stat(follow_symlinks=False) for entry in entries]
        return [
            Listed(entry.name, state.st_size, state.st_mtime, reached and entry.is_file(follow_symlinks=False))
            for entry, state in zip(entries, states, strict=True)
        ]

    def put(self, path: str, content: bytes, attempt: int = 1) -> None:
        """Write a whole file or none of it. Raises: OSError naming the file, for example if the disk is full."""
        write_atomic(self.root / path, content, attempt)

    def create(self, path: str, content: bytes) -> None:
        """Write a file where none is. Raises: FileExistsError; OSError naming the file."""
        if (self.root / path).exists():
            raise FileExistsError(f"{self.root / path}: expected no such file")
        self.put(path, content)

    def move(self, source: str, target: str) -> None:
        """Give a file another name, whose own file is replaced. Raises: OSError naming it."""
        os.replace(self.root / source, self.root / target)
        _sync_folder((self.root / target).parent)

    def remove(self, path: str) -> None:
        """Delete a file if there is one."""
        (self.root / path).unlink(missing_ok=True)

    def next_attempt(self, paths: Sequence[str]) -> int:
        """One more than the last attempt to write these files that left a temporary file."""
        files = [self.root / path for path in paths]
        left = [found for file in files for found in file.parent.glob(f"{file.name}.tmp.*")]
        return 1 + max((int(path.suffix[1:]) for path in left if path.suffix[1:].isdigit()), default=0)

    @contextmanager
    def held(self, *, exclusive: bool) -> Iterator[None]:
        """As `locked`."""
        with locked(self.root, exclusive=exclusive):
            yield


def write_atomic(path: Path, content: bytes, attempt: int = 1) -> None:
    """Write a whole file or none of it: into a temporary name beside it, flushed to disk, then moved.

    Raises: OSError naming the file, for example if the disk is full.
    """
    temporary = path.with_name(f"{path.name}.tmp.{os.getpid()}.{attempt}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        _remove(temporary)
        # What a write or a flush raises names no file.
        said = f"{error.strerror}; nothing half-written is left, run the same command again when that is mended"
        raise OSError(error.errno, said, str(path)) from error
    except BaseException:
        _remove(temporary)
        raise
    _sync_folder(path.parent)


@contextmanager
def locked(root: Path, *, exclusive: bool) -> Iterator[None]:
    """Hold a store: shared by all that add shards, exclusive for what deletes. Released when the process ends.

    Raises: ValueError naming the store if another process holds it in a way that excludes this one.
    """
    with open(root / "dataset.json", "rb") as file:
        try:
            fcntl.flock(file, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(
                f"{root}: expected a store that no other process works on, one does; wait for it"
            ) from error
        yield


def _sync_folder(path: Path) -> None:
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _remove(temporary: Path) -> None:
    with suppress(OSError):  # what made the write fail is the news
        temporary.unlink(missing_ok=True)
