"""Read a token store: a folder of committed shards, sample by sample, as the token-tensors that `encode` made."""

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from itertools import accumulate
from operator import index as as_int
from pathlib import Path
from typing import TYPE_CHECKING, Any, SupportsIndex, overload

import numpy as np
import pyarrow as pa
from torch import Tensor, nn

from vistok.data.column import Column
from vistok.data.iterate import TokenStream
from vistok.data.local_files import LocalFiles
from vistok.data.plan import tokenizer_fingerprint
from vistok.data.records import shard_names
from vistok.data.remote import RemoteFiles
from vistok.data.sample_rows import SampleRows
from vistok.data.shard_cache import CachedFiles, ShardCache
from vistok.data.shard_header import REMEDY
from vistok.data.shard_reader import Budget, OpenShard
from vistok.data.store_files import StoreFiles, is_url, read_commits, read_dataset
from vistok.protocols import Tokenizer
from vistok.tokens import TokenTensor

if TYPE_CHECKING:
    from vistok.data.collate import Collate

IntArray = np.ndarray[Any, np.dtype[np.integer[Any]]]
Indices = Sequence[int] | Tensor | IntArray


class TokenStore:
    """Samples in the order of the plan; only committed shards count. Files are opened at first use, per process.

    Pickles as its path and the numbers of its shards, so DataLoader workers open the files themselves.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        tokenizer: Tokenizer | nn.Module | None = None,
        budget: Budget = None,
        cache: ShardCache | None = None,
    ) -> None:
        """path: a folder, or a URL that fsspec knows (s3://, gs://, http://, memory://).

        tokenizer: if given, must be the one that made the store. budget: read only the first tokens of each sample, as
        many (int) or that part of them (float in (0, 1], at least one); for tokens of the order "1d" or "causal-1d".
        cache: keep whole shards of a URL in a local folder, None = read ranges of them each time.
        Raises: FileNotFoundError if `path` is no store; ValueError if its format is newer than this code, another
        tokenizer made it or the order of its tokens allows no budget; ImportError if its scheme needs a package.
        """
        self.location = str(path)
        self.budget = _checked_budget(budget)
        self.cache = cache
        self._load(None)
        if tokenizer is not None:
            self.check_tokenizer(tokenizer)
        filled = [slot for slot, record in enumerate(self.commits.values()) if record["n_samples"]]
        if budget is not None and filled:
            self.opened_shard(filled[0])

    def _load(self, shards: Sequence[int] | None) -> None:
        # file:// too is read by ranges here: who gives a URL may want no mapping.
        self.files: StoreFiles = (
            RemoteFiles(self.location) if is_url(self.location) else LocalFiles(Path(self.location))
        )
        self.dataset = read_dataset(self.files)
        # Not what is listed: a web server lists nothing.
        numbers = range(self.dataset["num_shards"]) if shards is None else shards
        self.commits: dict[int, dict[str, Any]] = read_commits(self.files, self.dataset["plan_hash"], numbers)
        if is_url(self.location) and self.cache is not None:
            hashes = {name: digest for record in self.commits.values() for name, digest in record["sha256"].items()}
            self.files = CachedFiles(self.location, self.cache, hashes)
        self.shards = tuple(self.commits)
        self.ends = list(accumulate(record["n_samples"] for record in self.commits.values()))
        self._opened: list[OpenShard | None] = [None] * len(self.shards)
        self._columns: dict[str, Column] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {"location": self.location, "budget": self.budget, "cache": self.cache, "shards": self.shards}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.location, self.budget, self.cache = state["location"], state["budget"], state["cache"]
        # Shards committed since then would shift every index behind them.
        self._load(state["shards"])

    @property
    def path(self) -> Path:
        """Folder of the store. Raises: ValueError if it lies behind a URL, which `location` gives."""
        if not isinstance(self.files, LocalFiles):
            raise ValueError(f"{self.location}: expected a store in a local folder; copy it into one")
        return self.files.root

    @property
    def tokenizer(self) -> str:
        """Name of the tokenizer that made the store."""
        return str(self.dataset["tokenizer"])

    @property
    def fingerprint(self) -> str:
        """sha256 of that tokenizer's settings and weights."""
        return str(self.dataset["fingerprint"])

    @cached_property
    def rows(self) -> SampleRows:
        """Per sample: key, source, width, height, crop, image_size, grid, n_tokens, caption, the user's own columns."""
        return SampleRows(self)

    @cached_property
    def keys(self) -> list[str]:
        """Per sample its key: its path below the encoded folder, in an archive or a table."""
        return [key for slot in range(len(self.shards)) for key in self.read_rows(slot, ["key"])["key"].to_pylist()]

    @cached_property
    def lengths(self) -> IntArray:
        """Tokens of each sample [S] int64, under the budget. Opens every shard."""
        return np.concatenate([np.zeros(0, np.int64), *(shard.lengths for shard in self.opened())])

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the stored columns, which are fields of a TokenTensor; () while no sample is committed."""
        return next((tuple(shard.parts) for shard in self.opened() if shard.samples), ())

    def column(self, name: str) -> Column:
        """One column in its stored dtype: the fastest way to tokens. Raises: KeyError naming the columns there are."""
        if name not in self._columns:
            shard = next((shard for shard in self.opened() if shard.samples), None)
            if shard is not None and name not in shard.parts and not (name == "coords" and shard.header.whole_grids):
                raise KeyError(f"{self.location}: expected one of the columns {', '.join(shard.parts)}, got {name!r}")
            self._columns[name] = Column(self, name)
        return self._columns[name]

    def check_tokenizer(self, tokenizer: Tokenizer | nn.Module) -> None:
        """Raise ValueError with both names and fingerprints unless this tokenizer made the store."""
        found = tokenizer_fingerprint(tokenizer)
        if found != self.fingerprint:
            name = getattr(tokenizer, "name", type(tokenizer).__name__)
            raise ValueError(
                f"{self.location}: expected the tokenizer that made this store, {self.tokenizer} "
                f"{self.fingerprint[:16]}, got {name} {found[:16]}; pass the checkpoint that it was encoded with"
            )

    def __len__(self) -> int:
        return self.ends[-1] if self.ends else 0

    @overload
    def __getitem__(self, index: int) -> TokenTensor: ...
    @overload
    def __getitem__(self, index: slice | Indices) -> TokenTensor | list[TokenTensor]: ...
    def __getitem__(self, index: int | slice | Indices) -> TokenTensor | list[TokenTensor]:
        """One sample as a batch of one; several as one padded batch if their specs agree, else as a list.

        embeds and scores come back as float32, indices and source as int64, coords as int32.
        Raises: IndexError; TypeError for a bool mask.
        """
        if isinstance(index, slice):
            index = range(*index.indices(len(self)))
        if isinstance(index, Tensor | np.ndarray) and index.ndim:
            index = self.as_list(index)
        if isinstance(index, Sequence):
            items = self.__getitems__(index)
            return TokenTensor.cat(items) if len({item.spec for item in items}) == 1 else items
        if isinstance(index, bool):
            raise TypeError(f"{self.location}: expected an index, got {index}")
        slot, row = self._place(index)
        shard = self._opened[slot] or self.opened_shard(slot)
        return shard.tokens(row, iter(self.files.fetch(shard.spans(row))))

    def __getitems__(self, indices: Indices) -> list[TokenTensor]:
        """Several samples, each as a batch of one, read together; what DataLoader calls. Raises: as `store[i]`."""
        places = self.places(indices)
        shards = [self._opened[slot] or self.opened_shard(slot) for slot, _ in places]
        spans = [span for shard, (_, row) in zip(shards, places, strict=True) for span in shard.spans(row)]
        values = iter(self.files.fetch(spans))
        return [shard.tokens(row, values) for shard, (_, row) in zip(shards, places, strict=True)]

    def __iter__(self) -> Iterator[TokenTensor]:
        for position in range(len(self)):
            yield self[position]

    def iter(
        self,
        batch: int | None = None,
        *,
        max_tokens: int | None = None,
        collate: "Collate | None" = None,
        shuffle: bool = False,
        seed: int = 0,
        epoch: int = 0,
        rank: int = 0,
        world: int = 1,
        state: Mapping[str, Any] | None = None,
    ) -> TokenStream:
        """Samples of an epoch one by one, or `collate`d in batches: see `TokenStream`."""
        stream = TokenStream(
            self, batch, max_tokens=max_tokens, collate=collate, shuffle=shuffle, seed=seed, epoch=epoch, rank=rank,
            world=world,
        )  # fmt: skip
        if state is not None:
            stream.load_state_dict(state)
        return stream

    def as_list(self, indices: Indices) -> list[int]:
        """Indices of any kind as integers. Raises: TypeError for a bool mask, or what are no integers."""
        found = indices.tolist() if isinstance(indices, Tensor | np.ndarray) else list(indices)
        if bool in set(map(type, found)):
            raise TypeError(f"{self.location}: expected indices, got a bool mask; give mask.nonzero()[:, 0]")
        return list(map(as_int, found))

    def places(self, indices: Indices) -> list[tuple[int, int]]:
        """Per index the place of its shard in `shards` and its row there. Raises: IndexError, TypeError."""
        return [self._place(index) for index in self.as_list(indices)]

    def _place(self, index: SupportsIndex) -> tuple[int, int]:
        at = as_int(index)
        if at < 0:
            at += len(self)
        slot = bisect_right(self.ends, at)
        if at < 0 or slot == len(self.ends):
            raise self.out_of_range(index)
        return slot, at - self.ends[slot - 1] if slot else at

    def out_of_range(self, index: SupportsIndex) -> IndexError:
        """The error for an index that no sample has."""
        return IndexError(f"{self.location}: expected an index below {len(self)}, got {index}")

    def opened_shard(self, slot: int) -> OpenShard:
        """The shard at this place in `shards`. Raises: FileNotFoundError, ValueError if its file does not hold."""
        shard = self._opened[slot]
        if shard is None:
            number = self.shards[slot]
            shard = self._opened[slot] = OpenShard(
                self.files.tensors(shard_names(number).tensors),
                self.commits[number]["n_samples"],
                self.budget,
                lambda columns: self.read_rows(slot, columns),
            )
        return shard

    def opened(self) -> Iterator[OpenShard]:
        """Every shard in order, opened when its turn comes."""
        return map(self.opened_shard, range(len(self.shards)))

    def read_rows(self, slot: int, columns: Sequence[str] | None = None) -> pa.Table:
        """Rows of the shard at this place in `shards`, read anew. Raises: ValueError if there are too few or many."""
        number = self.shards[slot]
        table = self.files.rows(shard_names(number).rows, columns)
        expected = self.commits[number]["n_samples"]
        if table.num_rows != expected:
            raise ValueError(
                f"{self.location}/{shard_names(number).rows}: expected {expected} rows, got {table.num_rows}; {REMEDY}"
            )
        return table


def _checked_budget(budget: Budget) -> Budget:
    if budget is None or (type(budget) is int and budget >= 1) or (type(budget) is float and 0 < budget <= 1):
        return budget
    raise ValueError(f"budget: expected tokens >= 1 (int) or a part in (0, 1] (float), got {budget!r}")
