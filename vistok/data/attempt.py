"""One attempt to write a shard, under names that no other attempt has; who commits the shard gives it its own names.

A worker that is cut off from the one who sent it may write for as long as it likes, and what it writes may differ if
pictures failed for a moment: it never touches the files of a shard that another attempt has become.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple
from uuid import uuid4

from vistok.data.encode_shard import Loader, ShardWork
from vistok.data.inputs.entry import Entry
from vistok.data.load import load
from vistok.data.records import attempt_name, shard_names
from vistok.data.shard import Writes
from vistok.data.store_files import StoreFiles


class Attempt(NamedTuple):
    """name: of the attempt. record: the commit record of its data, None if too many pictures failed."""

    name: str
    shard: int
    record: dict[str, Any] | None


class _Apart:
    """A store to write into, as one attempt sees it."""

    def __init__(self, files: Writes, name: str) -> None:
        self._files, self._name = files, name

    def put(self, path: str, content: bytes, attempt: int = 1) -> None:
        self._files.put(attempt_name(path, self._name), content, attempt)

    def remove(self, path: str) -> None:
        self._files.remove(attempt_name(path, self._name))

    def next_attempt(self, paths: Sequence[str]) -> int:
        return self._files.next_attempt(paths)


def write_attempt(work: ShardWork, shard: int, entries: Sequence[Entry], loader: Loader = load) -> Attempt:
    """Encode one shard and write its data apart. Raises: OSError naming the file."""
    name = uuid4().hex
    return Attempt(name, shard, work.encode(shard, entries, loader=loader, into=_Apart(work.files, name)))


def commit_attempt(work: ShardWork, attempt: Attempt) -> None:
    """Give the data of an attempt the names of its shard, then commit that, unless too many pictures failed.

    Raises: ValueError if the data are not there; OSError naming the file.
    """
    names, files = shard_names(attempt.shard), work.files
    if attempt.record is not None:
        _check_written(files, attempt.name, attempt.record)
        for path in (names.tensors, names.rows):
            files.move(attempt_name(path, attempt.name), path)
    if attempt.record is None or attempt.record["n_errors"]:
        files.move(attempt_name(names.errors, attempt.name), names.errors)
    else:
        files.remove(names.errors)
    if attempt.record is not None:
        work.commit(attempt.record)


def _check_written(files: StoreFiles, name: str, record: dict[str, Any]) -> None:
    sizes = [files.size_of(attempt_name(path, name)) for path in shard_names(record["shard"])[:2]]
    if None in sizes or sum(size or 0 for size in sizes) != record["bytes"]:
        raise ValueError(
            f"{files.name}: expected the files of shard {record['shard']} here, worker {record['worker']} wrote them "
            "elsewhere; give a URL, or a folder that all nodes share"
        )
