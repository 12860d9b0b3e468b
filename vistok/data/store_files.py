"""Where the files of a token store lie: in a local folder, or behind a URL that fsspec knows. One interface to both."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa

from vistok.data.local_files import LocalFiles
from vistok.data.local_write import Listed
from vistok.data.records import commit_record, dataset_record, shard_names
from vistok.data.remote import RemoteFiles
from vistok.data.shard import FORMAT_VERSION
from vistok.data.shard_reader import Array, Span, TensorFile


class StoreFiles(Protocol):
    """Files of a store, by path relative to it, with slashes. Pickles as its place. name: what errors call that place.

    mapped: whether the tensors of a shard are there without being read.
    """

    mapped: bool

    @property
    def name(self) -> str: ...

    def contents(self, paths: Sequence[str]) -> list[bytes | None]:
        """Each file whole, None where there is none."""
        ...

    def rows(self, path: str, columns: Sequence[str] | None = None) -> pa.Table:
        """A parquet file, some of its columns or all. Raises: FileNotFoundError, ValueError naming the file."""
        ...

    def row_schema(self, path: str) -> pa.Schema:
        """The columns of a parquet file. Raises: FileNotFoundError, ValueError naming the file."""
        ...

    def tensors(self, path: str) -> TensorFile:
        """A safetensors file. Raises: FileNotFoundError naming it."""
        ...

    def fetch(self, spans: Sequence[Span]) -> list[Array]:
        """The values of each span, read-only."""
        ...

    def listed(self, folder: str) -> list[Listed]:
        """What is in a folder, by name; nothing if there is no such folder. Raises: NotADirectoryError."""
        ...

    def size_of(self, path: str) -> int | None:
        """Bytes of a file, None if there is none."""
        ...

    def digest(self, path: str) -> tuple[str, int] | None:
        """sha256 (hex) and size of a file, None if there is none."""
        ...

    def put(self, path: str, content: bytes, attempt: int = 1) -> None:
        """Write a whole file or none of it. Raises: OSError naming the file."""
        ...

    def create(self, path: str, content: bytes) -> None:
        """Write a file that nobody else has written. Raises: FileExistsError; OSError naming the file."""
        ...

    def move(self, source: str, target: str) -> None:
        """Give a file another name, whose own file is replaced. Raises: OSError naming it."""
        ...

    def remove(self, path: str) -> None:
        """Delete a file if there is one."""
        ...

    def next_attempt(self, paths: Sequence[str]) -> int:
        """One more than the last attempt to write these files that left something behind."""
        ...

    def held(self, *, exclusive: bool) -> AbstractContextManager[None]:
        """Hold the store: shared by all that add shards, exclusive for what deletes.

        Raises: ValueError naming the store if another process holds it in a way that excludes this one.
        """
        ...


def is_url(location: str | Path) -> bool:
    """Whether a place is given as a URL."""
    return "://" in str(location)


def open_files(location: str | Path) -> StoreFiles:
    """The files of a store in a folder (also as file://) or behind a URL. Raises: as `RemoteFiles`."""
    text = str(location)
    if text.startswith("file://"):
        return LocalFiles(Path(text.removeprefix("file://")))
    return RemoteFiles(text) if is_url(text) else LocalFiles(Path(location))


def read_dataset(files: StoreFiles) -> dict[str, Any]:
    """The dataset.json of a store. Raises: FileNotFoundError if there is none; ValueError if it is of another kind."""
    [content] = files.contents(["dataset.json"])
    if content is None:
        raise FileNotFoundError(
            f"{files.name}: expected a token store (a folder with dataset.json); `vistok encode` makes one"
        )
    return dataset_record(content, f"{files.name}/dataset.json", FORMAT_VERSION)


def read_commits(files: StoreFiles, plan_hash: str, shards: Sequence[int]) -> dict[int, dict[str, Any]]:
    """Commit records of this plan, by shard. Raises: ValueError naming a file that is no record."""
    paths = [shard_names(shard).commit for shard in shards]
    found = {
        shard: commit_record(content, f"{files.name}/{path}", plan_hash)
        for shard, path, content in zip(shards, paths, files.contents(paths), strict=True)
        if content is not None
    }
    return {shard: record for shard, record in found.items() if record is not None}


def recorded_shards(files: StoreFiles, num_shards: int) -> list[int]:
    """Shards of a plan of `num_shards` that have a file for a commit record, of whichever plan."""
    return [shard for shard in commit_numbers(files) if shard < num_shards]


def commit_numbers(files: StoreFiles) -> list[int]:
    """Shards that have a file for a commit record, of whichever plan, in the plan or not."""
    names = [listed.name for listed in files.listed("commits")]
    stems = [name.removesuffix(".json") for name in names if name.endswith(".json")]
    return sorted(int(stem) for stem in stems if stem.isascii() and stem.isdecimal() and f"{int(stem):05d}" == stem)
