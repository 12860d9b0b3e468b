"""A store's ids once more as windows of equally many bits, in a column of its rows beside the tokens.

`add_windows` copies a store and adds the column; the model that decodes it stands in the new store's dataset.json, so
nothing else is needed to read it. n ids of a sample, w windows.
"""

import hashlib
import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from vistok.data.claim import claim, folder_apart
from vistok.data.equal_windows import WORD, DigitModel, Words, check_bits, decode_windows, digit_sizes, encode_windows
from vistok.data.local_files import LocalFiles
from vistok.data.origin import Origin, dataset_of, origins
from vistok.data.shard import locked, read_commit, shard_files, write_atomic
from vistok.data.shard_content import CommittedStore, ShardContent, open_committed
from vistok.data.store import TokenStore

FIELD = pa.field("windows", pa.list_(pa.uint16()))


@dataclass(frozen=True)
class WindowSummary:
    """raw_bytes: of the ids as uint16; window_bytes: of the windows; zstd_bytes: of each sample's ids at level 19.

    model_bytes: of the model in dataset.json. One fitted on the store itself knows its ids: count it for a small store.
    """

    samples: int
    ids: int
    windows: int
    bits: int
    raw_bytes: int
    window_bytes: int
    zstd_bytes: int
    model_bytes: int
    plan_hash: str

    @property
    def ids_per_window(self) -> float:
        """Mean ids that a window tells."""
        return self.ids / max(1, self.windows)


def add_windows(
    source: str | Path,
    out: str | Path,
    *,
    bits: int = 128,
    sizes: tuple[int, ...] | None = None,
    model: DigitModel | None = None,
) -> WindowSummary:
    """Copy a store of ids into the folder `out`, with their windows in the column "windows" of the rows.

    sizes: alphabets of an id's digits, such as FSQ's levels; None = those of `digit_sizes`. model: None = fitted on the
    store itself. What was interrupted goes on when it is run again.
    Raises: FileNotFoundError, ValueError if `source` is no whole store, is damaged, holds no ids of one codebook or has
    windows already, if bits or digits do not fit, or if `out` holds something else; then nothing is written.
    """
    check_bits(bits)
    store = open_committed(source)
    root = folder_apart(out, [store.root])
    store.check_complete(False)
    codes = _codes(store)
    alphabets = model.sizes if model is not None else digit_sizes(codes) if sizes is None else sizes
    if prod(alphabets) < codes:
        raise ValueError(
            f"{store.root}: expected digits for ids of {codes} codes, got alphabets {list(alphabets)} for "
            f"{prod(alphabets)}; give other sizes, or the model of a store of this tokenizer"
        )
    for shard in store.commits:
        store.check_bytes(shard)
    if model is None:
        model = DigitModel.fit((ids for shard in store.commits for ids in _ids(store.shard(shard))), alphabets)
    told = {"bits": bits, **model.record()}
    fields = {**store.dataset.get("fields", {}), FIELD.name: str(FIELD.type)}
    content = [digest for record in store.commits.values() for digest in record["sha256"].values()]
    dataset = dataset_of(origins(store.dataset), content, fields=fields, windows=told)
    claim(LocalFiles(root), dataset)
    sums = np.zeros(3, np.int64)
    with locked(root, exclusive=False):
        for shard in store.commits:
            sums += _add_to_shard(store, shard, root, dataset["plan_hash"], model, bits)
    samples = sum(record["n_samples"] for record in store.commits.values())
    ids, windows, squeezed = sums.tolist()
    size = windows * bits // 8
    return WindowSummary(
        samples, ids, windows, bits, 2 * ids, size, squeezed, len(told["frequencies"]), dataset["plan_hash"]
    )


class Coder(NamedTuple):
    """What tells the windows of some shards: how long they are, and by which model."""

    shards: range
    bits: int
    model: DigitModel


class WindowColumn:
    """The windows of a store that `add_windows` wrote, or of several such stores that were merged."""

    def __init__(self, store: TokenStore) -> None:
        """Raises: ValueError if the store has none."""
        self._store = store
        self.coders = [_coder(store, origin) for origin in origins(store.dataset)]

    def __len__(self) -> int:
        return len(self._store)

    @property
    def model(self) -> DigitModel:
        """The one model of the store. Raises: ValueError if it was merged from stores of several."""
        first = self.coders[0].model
        if any(coder.model.record() != first.record() for coder in self.coders[1:]):
            raise ValueError(
                f"{self._store.location}: expected windows of one model, got several, merged; name one of the stores "
                "that it was merged from"
            )
        return first

    def words(self, index: int) -> Words:
        """Windows [w, bits / 16] of one sample. Raises: IndexError."""
        [(slot, row)] = self._store.places([index])
        return np.array(self._tables(slot)[row].as_py(), np.uint16).reshape(-1, self._of(slot).bits // WORD)

    def ids(self, index: int) -> Tensor:
        """The ids [n] int64 that the windows of one sample tell; the stored ids are not read. Raises: IndexError."""
        [(slot, _)] = self._store.places([index])
        coder = self._of(slot)
        return decode_windows(self.words(index), coder.model, coder.bits, int(self._store.lengths[index]))

    def _of(self, slot: int) -> Coder:
        return next(coder for coder in self.coders if self._store.shards[slot] in coder.shards)

    def _tables(self, slot: int) -> pa.ChunkedArray:
        if slot not in self._kept:
            self._kept[slot] = self._store.read_rows(slot, [FIELD.name])[FIELD.name]
        return self._kept[slot]

    @cached_property
    def _kept(self) -> dict[int, pa.ChunkedArray]:
        return {}


def _coder(store: TokenStore, origin: Origin) -> Coder:
    told = origin.plan.get("windows")
    if not isinstance(told, Mapping) or type(told.get("bits")) is not int:
        raise ValueError(f"{store.location}: expected a store with windows; make one with `vistok store windows`")
    return Coder(origin.shards, int(told["bits"]), DigitModel.from_record(told))


def _codes(store: CommittedStore) -> int:
    if any(FIELD.name in store.row_schema(shard).names for shard in store.commits):
        raise ValueError(f'{store.root}: expected a store without windows, its rows have a column "{FIELD.name}"')
    spec = next(
        (store.shard(shard).header_spec for shard, record in store.commits.items() if record["n_samples"]), None
    )
    if spec is None:
        raise ValueError(f"{store.root}: expected at least one sample to make windows of, got none")
    if "indices" not in store.dataset["columns"] or len(spec.codebook_sizes) != 1:
        raise ValueError(
            f"{store.root}: expected ids of one codebook, got columns {', '.join(store.dataset['columns'])} and "
            f"codebooks {list(spec.codebook_sizes)}"
        )
    return int(spec.codebook_sizes[0])


def _ids(content: ShardContent) -> Iterator[Tensor]:
    if content.samples:
        yield from content.column("indices").to(torch.int64).split(content.lengths)


def _add_to_shard(
    store: CommittedStore, shard: int, root: Path, plan_hash: str, model: DigitModel, bits: int
) -> "np.ndarray[Any, np.dtype[np.int64]]":
    """Write one shard, unless it is there; its ids, windows, and bytes of its ids by zstd."""
    content = store.shard(shard)
    zstd = pa.Codec("zstd", 19)
    sums, column = np.zeros(3, np.int64), []
    for ids in _ids(content):
        words = encode_windows(ids, model, bits)
        column.append(words.ravel().tolist())
        sums += (len(ids), len(words), len(zstd.compress(ids.numpy().astype("<u2").tobytes())))
    if read_commit(root, shard, plan_hash) is None:
        _write(store, shard, root, plan_hash, content.rows.append_column(FIELD, pa.array(column, FIELD.type)))
    return sums


def _write(store: CommittedStore, shard: int, root: Path, plan_hash: str, rows: pa.Table) -> None:
    source, target = shard_files(store.root, shard), shard_files(root, shard)
    buffer = io.BytesIO()
    pq.write_table(rows, buffer, compression="zstd")
    data = {target.tensors: source.tensors.read_bytes(), target.rows: buffer.getvalue()}
    for path, content in data.items():
        write_atomic(path, content)
    record = store.commits[shard]
    if record["n_errors"]:
        write_atomic(target.errors, source.errors.read_bytes())
    record = {
        **record,
        "plan_hash": plan_hash,
        "bytes": sum(len(content) for content in data.values()),
        "sha256": {path.name: hashlib.sha256(content).hexdigest() for path, content in data.items()},
    }
    write_atomic(target.commit, (json.dumps(record, indent=2) + "\n").encode())
