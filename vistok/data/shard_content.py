"""Committed shards as they lie on disk: columns in the dtypes of the store, rows as an Arrow table.

For what checks, copies or converts a token store; to train on one, see `vistok.data.store`. T tokens of a shard,
n tokens of a sample.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from vistok.data.local_files import LocalFiles
from vistok.data.records import shard_names
from vistok.data.shard_header import REMEDY
from vistok.data.shard_reader import OpenShard, Part
from vistok.data.store_files import StoreFiles, open_files, read_commits, read_dataset, recorded_shards
from vistok.tokens import TokenSpec

COLUMNS = ("indices", "embeds", "coords", "scores", "source", "sizes")
_RECORD_COUNTS = ("n_samples", "n_tokens", "n_errors", "bytes")


class ShardContent:
    """One shard, mapped. metadata: strings of its header; names: columns of its tokens, in the order of COLUMNS."""

    def __init__(self, files: StoreFiles, shard: int, samples: int) -> None:
        """Raises: FileNotFoundError, ValueError naming the file if its header or offsets do not hold."""
        names = shard_names(shard)
        self.rows_file, self.samples, self._files = names.rows, samples, files
        self._open = OpenShard(files.tensors(names.tensors), samples, None, self._read_rows)
        self.metadata: dict[str, str] = self._open.header.metadata
        found = {*self._open.parts} | ({"coords"} if self._open.header.whole_grids and self._open.parts else set())
        self.names = [name for name in COLUMNS if name in found]

    @cached_property
    def rows(self) -> pa.Table:
        """One row per sample."""
        return self._read_rows(None)

    @property
    def header_spec(self) -> TokenSpec:
        """What all samples share."""
        return self._open.header.spec

    @property
    def specs(self) -> list[TokenSpec]:
        """What the tokens of each sample are. Raises: ValueError if grids and lengths do not go together."""
        return self._open.specs

    @property
    def lengths(self) -> list[int]:
        """Tokens of each sample."""
        found: list[int] = self._open.lengths.tolist()
        return found

    def is_stored(self, name: str) -> bool:
        """Whether a column is in the file; coords of whole grids are not."""
        return name in self._open.parts

    def column(self, name: str) -> Tensor:
        """[T, ...] in the dtype of the store, a copy."""
        part = self._parts[name]
        return _as_tensor(part, part.whole())

    def empty(self, name: str) -> Tensor:
        """[0, ...] of the dtype and width of a column."""
        part = self._parts[name]
        return _as_tensor(part, part.whole()[:0])

    def tokens(self, index: int) -> dict[str, Tensor]:
        """Columns of one sample: name -> [n, ...] in the dtype of the store, copies."""
        return {name: _as_tensor(part, part.read(index)) for name, part in self._parts.items()}

    @cached_property
    def _parts(self) -> dict[str, Part]:
        return {name: self._open.column(name) for name in self.names}

    def _read_rows(self, columns: list[str] | None) -> pa.Table:
        table = self._files.rows(self.rows_file, columns)
        if table.num_rows != self.samples:
            raise ValueError(
                f"{self._files.name}/{self.rows_file}: expected {self.samples} rows, got {table.num_rows}; {REMEDY}"
            )
        return table


@dataclass(frozen=True)
class CommittedStore:
    """A token store without its unfinished shards; commits: record by shard number, ascending."""

    files: StoreFiles
    dataset: dict[str, Any]
    commits: dict[int, dict[str, Any]]

    @property
    def root(self) -> Path:
        """Folder of the store. Raises: ValueError if it lies behind a URL."""
        if not isinstance(self.files, LocalFiles):
            raise ValueError(f"{self.files.name}: expected a store in a local folder; copy it into one")
        return self.files.root

    def shard(self, shard: int) -> ShardContent:
        """Map one shard. Raises: FileNotFoundError, ValueError naming the file that cannot be read."""
        return ShardContent(self.files, shard, self.commits[shard]["n_samples"])

    def row_column(self, shard: int, name: str) -> pa.ChunkedArray:
        """One column of one shard's rows, such as "key"."""
        return self.files.rows(shard_names(shard).rows, [name])[name]

    def row_schema(self, shard: int) -> pa.Schema:
        """Columns of one shard's rows, without metadata."""
        return self.files.row_schema(shard_names(shard).rows).remove_metadata()

    def errors(self, shard: int) -> list[dict[str, str]]:
        """Samples of one shard that failed. Raises: ValueError naming the file if it cannot be read."""
        if not self.commits[shard]["n_errors"]:
            return []
        path = shard_names(shard).errors
        [content] = self.files.contents([path])
        if content is None:
            raise FileNotFoundError(f"{self.files.name}/{path}: expected the errors that the commit record counts")
        return read_errors(content, f"{self.files.name}/{path}")

    def check_bytes(self, shard: int) -> None:
        """Raise ValueError naming the file unless a shard's files are what its commit record says."""
        if changed := changed_files(self.files, shard, self.commits[shard]):
            raise ValueError(f"{self.files.name}: {'; '.join(changed)}; {REMEDY}")

    def check_complete(self, allow_incomplete: bool) -> None:
        """Raise ValueError if shards are missing and that is not allowed."""
        planned = self.dataset["num_shards"]
        if len(self.commits) < planned and not allow_incomplete:
            raise ValueError(
                f"{self.files.name}: expected all {planned} shards to be committed, got {len(self.commits)}; run the "
                "command that made the store again, or take what is there with --allow-incomplete"
            )


def _as_tensor(part: Part, values: np.ndarray[Any, np.dtype[Any]]) -> Tensor:
    tensor = torch.from_numpy(values.copy())
    return tensor.view(torch.bfloat16) if part.extent.code == "BF16" else tensor


def open_committed(path: str | Path) -> CommittedStore:
    """Read what a store's folder says about itself and which of its shards are there.

    Raises: FileNotFoundError, ValueError if `path` is no store, or naming the file that cannot be read.
    """
    files = open_files(path)
    dataset = read_dataset(files)
    commits = read_commits(files, dataset["plan_hash"], recorded_shards(files, dataset["num_shards"]))
    for number, record in commits.items():
        if problems := record_problems(record, number):
            name = f"{files.name}/{shard_names(number).commit}"
            raise ValueError(f"{name}: {'; '.join(problems)}; delete it and encode again")
    return CommittedStore(files, dataset, commits)


def record_problems(record: Mapping[str, Any], number: int) -> list[str]:
    """What a commit record of shard `number` says that no such record says."""
    name = f"{number:05d}"
    problems = [] if record.get("shard") == number else [f"expected shard {number}, got {record.get('shard')!r}"]
    for count in _RECORD_COUNTS:
        value = record.get(count)
        if type(value) is not int or value < 0:
            problems.append(f"expected {count} >= 0, got {value!r}")
    hashes = record.get("sha256")
    files = {f"{name}.safetensors", f"{name}.parquet"}
    if not isinstance(hashes, dict) or {*hashes} != files:
        problems.append(f"expected the sha256 of {' and '.join(sorted(files))}, got {hashes!r:.200}")
    return problems


def read_errors(content: bytes, name: str) -> list[dict[str, str]]:
    """Samples that failed: key, error class, message. Raises: ValueError naming the file (`name`) and line."""
    found = []
    for number, line in enumerate(content.splitlines(), 1):
        try:
            error = json.loads(line)
        except ValueError as reason:
            raise ValueError(f"{name}: line {number}: expected JSON, got {reason}") from reason
        if not isinstance(error, dict) or not isinstance(error.get("key"), str):
            raise ValueError(f"{name}: line {number}: expected an object with a key")
        found.append(error)
    return found


def changed_files(files: StoreFiles, shard: int, record: Mapping[str, Any]) -> list[str]:
    """What the two data files of a shard have in them that its commit record does not say."""
    problems = []
    size = 0
    for path in shard_names(shard)[:2]:
        name = path.split("/")[-1]
        found = files.digest(path)
        if found is None:
            problems.append(f"{name}: is missing")
            continue
        digest, bytes_there = found
        size += bytes_there
        said = str(record["sha256"].get(name))
        if digest != said:
            problems.append(f"{name}: sha256 is {digest[:16]}, the commit record says {said[:16]}")
    if not problems and size != record["bytes"]:
        problems.append(f"{shard:05d}.json: says {record['bytes']} bytes, files have {size}")
    return problems


def repeated_keys(columns: Sequence[pa.ChunkedArray]) -> pa.Array:
    """Keys that occur more than once in all of `columns` together."""
    chunks = [chunk.cast(pa.large_string()) for column in columns for chunk in column.chunks]
    counts = pc.value_counts(pa.chunked_array(chunks, pa.large_string()))
    return counts.filter(pc.greater(counts.field("counts"), 1)).field("values")
