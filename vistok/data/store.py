"""Read a token store: a folder of committed shards, sample by sample, as the token-tensors that `encode` made."""

import json
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import accumulate
from operator import index as as_int
from pathlib import Path
from typing import Any, SupportsIndex, overload

import numpy as np
import pyarrow.parquet as pq
import torch
from safetensors import safe_open
from torch import Tensor, nn

from vistok.data.plan import tokenizer_fingerprint
from vistok.data.shard import FORMAT_VERSION, ShardFiles, read_commit, shard_files, spec_from_header
from vistok.protocols import Tokenizer
from vistok.rows import grid_coords
from vistok.tokens import TokenTensor

IntArray = np.ndarray[Any, np.dtype[np.integer[Any]]]

_IN_MEMORY = {
    "indices": torch.int64,
    "embeds": torch.float32,
    "coords": torch.int32,
    "scores": torch.float32,
    "source": torch.int64,
    "sizes": torch.float32,
}


class TokenStore:
    """Samples in the order of their keys; only committed shards count. Files are mapped at first use, per process.

    Pickles as its path and the numbers of its shards, so DataLoader workers open the files themselves.
    """

    def __init__(self, path: str | Path, *, tokenizer: Tokenizer | nn.Module | None = None) -> None:
        """tokenizer: if given, must be the one that made the store.

        Raises: FileNotFoundError if `path` is no store; ValueError if its format is newer than this code or another
        tokenizer made it.
        """
        self.path = Path(path)
        self.dataset = read_dataset(self.path)
        self._open(range(self.dataset["num_shards"]))
        if tokenizer is not None:
            self.check_tokenizer(tokenizer)

    def _open(self, shards: Sequence[int]) -> None:
        found = {shard: read_commit(self.path, shard, self.dataset["plan_hash"]) for shard in shards}
        self.commits: dict[int, dict[str, Any]] = {shard: record for shard, record in found.items() if record}
        self._shards = list(self.commits)
        self._ends = list(accumulate(record["n_samples"] for record in self.commits.values()))
        self._mapped: dict[int, _MappedShard] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "shards": self._shards}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.path = state["path"]
        self.dataset = read_dataset(self.path)
        # Shards committed since then would shift every index behind them.
        self._open(state["shards"])

    @property
    def tokenizer(self) -> str:
        """Name of the tokenizer that made the store."""
        return str(self.dataset["tokenizer"])

    @property
    def fingerprint(self) -> str:
        """sha256 of that tokenizer's settings and weights."""
        return str(self.dataset["fingerprint"])

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        """Per sample: key, source, source_offset, width, height, crop, image_size, grid, n_tokens, caption."""
        return [row for shard in self._shards for row in self._map(shard).rows]

    @cached_property
    def keys(self) -> list[str]:
        """Per sample its key: the path below the encoded folder."""
        return [row["key"] for row in self.rows]

    def check_tokenizer(self, tokenizer: Tokenizer | nn.Module) -> None:
        """Raise ValueError with both names and fingerprints unless this tokenizer made the store."""
        found = tokenizer_fingerprint(tokenizer)
        if found != self.fingerprint:
            name = getattr(tokenizer, "name", type(tokenizer).__name__)
            raise ValueError(
                f"{self.path}: expected the tokenizer that made this store, {self.tokenizer} {self.fingerprint[:16]}, "
                f"got {name} {found[:16]}; pass the checkpoint that it was encoded with"
            )

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    @overload
    def __getitem__(self, index: int) -> TokenTensor: ...
    @overload
    def __getitem__(self, index: slice | Sequence[int] | Tensor | IntArray) -> TokenTensor | list[TokenTensor]: ...
    def __getitem__(self, index: int | slice | Sequence[int] | Tensor | IntArray) -> TokenTensor | list[TokenTensor]:
        """One sample as a batch of one; several as one padded batch if their specs agree, else as a list.

        embeds and scores come back as float32, indices and source as int64, coords as int32.
        Raises: IndexError; TypeError for a bool mask.
        """
        if isinstance(index, slice):
            index = range(*index.indices(len(self)))
        if isinstance(index, Tensor | np.ndarray):
            index = index.tolist()
        if isinstance(index, Sequence):
            items = [self._item(one) for one in index]
            return TokenTensor.cat(items) if len({item.spec for item in items}) == 1 else items
        return self._item(index)

    def __iter__(self) -> Iterator[TokenTensor]:
        for position in range(len(self)):
            yield self._item(position)

    def _item(self, position: SupportsIndex) -> TokenTensor:
        if isinstance(position, bool):
            raise TypeError(f"{self.path}: expected indices, got a bool mask; give mask.nonzero()[:, 0]")
        position = as_int(position)
        at = position + len(self) if position < 0 else position
        if not 0 <= at < len(self):
            raise IndexError(f"{self.path}: expected an index below {len(self)}, got {position}")
        slot = bisect_right(self._ends, at)
        return self._map(self._shards[slot]).item(at - (self._ends[slot - 1] if slot else 0))

    def _map(self, shard: int) -> "_MappedShard":
        if shard not in self._mapped:
            self._mapped[shard] = _MappedShard(shard_files(self.path, shard))
        return self._mapped[shard]


class _MappedShard:
    """One shard's tensors, mapped and not read, and its rows."""

    def __init__(self, files: ShardFiles) -> None:
        self.rows: list[dict[str, Any]] = pq.read_table(files.rows).to_pylist()
        with safe_open(files.tensors, framework="pt") as file:
            metadata = file.metadata()
            stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no mapping)
        self.values = {
            name.removesuffix(".values"): value for name, value in stored.items() if name.endswith(".values")
        }
        self.offsets = {
            name: stored[f"{metadata.get(f'{name}.offsets_of', name)}.offsets"].tolist() for name in self.values
        }
        self.spec = spec_from_header(metadata)
        self.whole_grids = metadata.get("coords") == "grid"

    def item(self, row: int) -> TokenTensor:
        facts = self.rows[row]
        spec = replace(self.spec, grid=tuple(facts["grid"]), image_size=tuple(facts["image_size"]))
        fields: dict[str, Any] = {}
        for name, values in self.values.items():
            start, stop = self.offsets[name][row : row + 2]
            # A copy even where the dtype agrees: writing to the result must not reach the mapped file's pages.
            fields[name] = values[start:stop].to(_IN_MEMORY[name], copy=True)[None]
        if self.whole_grids:
            rows, cols = spec.grid
            fields["coords"] = grid_coords(rows, cols)
        return TokenTensor(spec=spec, **fields)


def read_dataset(path: Path) -> dict[str, Any]:
    """The dataset.json of a store. Raises: FileNotFoundError if there is none; ValueError if it is of another kind."""
    file = path / "dataset.json"
    if not file.is_file():
        raise FileNotFoundError(
            f"{path}: expected a token store (a folder with dataset.json); `vistok encode` makes one"
        )
    try:
        dataset = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file}: expected JSON, got {error}") from error
    if not isinstance(dataset, dict) or dataset.get("format") != "vistok-store":
        raise ValueError(f"{file}: expected format 'vistok-store', this file describes something else")
    if dataset.get("version") != FORMAT_VERSION:
        raise ValueError(f"{file}: expected version {FORMAT_VERSION}, got {dataset.get('version')}; update vistok")
    return dataset
