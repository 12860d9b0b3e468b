"""One store cut into several, such as train and val: a sample's part follows from the seed and its key alone.

Therefore a data set that has grown keeps its split. Token bytes stay as they are. Each part is a complete store,
written as `vistok encode` writes; what was interrupted goes on when it is run again.
"""

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import accumulate, groupby
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from vistok.data.claim import claim, folder_apart
from vistok.data.local_files import LocalFiles
from vistok.data.origin import Origin, dataset_of, origins
from vistok.data.shard import Sample, locked, read_commit, write_shard
from vistok.data.shard_content import CommittedStore, ShardContent, open_committed

_HASH_RANGE = 1 << 64
_FORBIDDEN = ("/", "\\", "\0")


@dataclass(frozen=True)
class PartSummary:
    """One part: where it lies, and its samples, shards and failed samples; written: shards of this run."""

    path: str
    samples: int
    shards: int
    written: int
    errors: int
    plan_hash: str


class _Kind(NamedTuple):
    """What all samples of one shard must agree in: plan (its number), columns, strings of the header, row columns."""

    plan: int
    names: tuple[str, ...]
    header: tuple[tuple[str, str], ...]
    rows: pa.Schema


@dataclass
class _Planned:
    """One shard of a part: rows by shard of the source, which must agree in `kind`."""

    kind: _Kind
    rows: dict[int, list[int]] = field(default_factory=dict)
    errors: list[dict[str, str]] = field(default_factory=list)

    @property
    def size(self) -> int:
        return sum(map(len, self.rows.values()))


def part_of(key: str, seed: int, parts: Mapping[str, float]) -> str:
    """The part that a key belongs to; `parts`: fraction by name, adding up to 1."""
    drawn = int.from_bytes(hashlib.sha256(json.dumps([seed, key]).encode()).digest()[:8], "big") / _HASH_RANGE
    names = sorted(parts)  # in whatever order the parts are given, the split is the same
    ends = accumulate(parts[name] for name in names)
    return next((name for name, end in zip(names, ends, strict=True) if drawn < end), names[-1])


def split_store(
    source: str | Path, out: str | Path, parts: Mapping[str, float], *, seed: int = 0, allow_incomplete: bool = False
) -> dict[str, PartSummary]:
    """Write a store `out/NAME` for every part; summaries by name.

    parts: fraction by name. allow_incomplete: split the committed shards of a store that lacks some. Raises:
    FileNotFoundError, ValueError if `source` is no store, is incomplete or damaged, if the fractions do not add up to
    1, or if `out` holds something else.
    """
    _check_parts(parts)
    store = open_committed(source)
    root = folder_apart(out, [store.root])
    store.check_complete(allow_incomplete)
    _check_folder(root, parts)
    planned = _plan(store, parts, seed)
    return {name: _write_part(store, root / name, shards, parts, seed) for name, shards in planned.items()}


def _check_parts(parts: Mapping[str, float]) -> None:
    for name, fraction in parts.items():
        if not name or name.startswith(".") or any(sign in name for sign in _FORBIDDEN):
            raise ValueError(f"split: expected the name of a folder for a part, such as train, got {name!r}")
        if not 0 < fraction <= 1:
            raise ValueError(f"split: expected a fraction in (0, 1] for {name}, got {fraction}")
    total = math.fsum(parts.values())
    if not math.isclose(total, 1, abs_tol=1e-6):
        raise ValueError(f"split: expected fractions that add up to 1, got {dict(parts)} with sum {total:g}")


def _check_folder(root: Path, parts: Mapping[str, float]) -> None:
    if root.exists() and not root.is_dir():
        raise ValueError(f"{root}: expected a folder for the parts, got a file")
    others = sorted({entry.name for entry in root.iterdir()} - {*parts}) if root.exists() else []
    if others:
        raise ValueError(f"{root}: expected a new or empty folder, or these parts, got {others[0]}; choose another")


def _plan(store: CommittedStore, parts: Mapping[str, float], seed: int) -> dict[str, list[_Planned]]:
    largest = max((record["n_samples"] for record in store.commits.values()), default=0)
    size = store.dataset.get("shard_samples") or max(largest, 1)
    planned: dict[str, list[_Planned]] = {name: [] for name in parts}
    for shard in store.commits:
        store.check_bytes(shard)
        kind = _kind(store, shard)
        errors = store.errors(shard)
        keys = [part_of(key, seed, parts) for key in store.row_column(shard, "key").to_pylist()]
        failed = [part_of(error["key"], seed, parts) for error in errors]
        for name, shards in planned.items():
            rows = [row for row, part in enumerate(keys) if part == name]
            _add(shards, kind, size, shard, rows)
            mine = [error for error, part in zip(errors, failed, strict=True) if part == name]
            if mine and not shards:
                shards.append(_Planned(kind))
            if mine:
                shards[-1].errors += mine
    return planned


def _kind(store: CommittedStore, shard: int) -> _Kind:
    plan = next(number for number, origin in enumerate(origins(store.dataset)) if shard in origin.shards)
    content = store.shard(shard)
    # Whether whole grids are left out is for the writer to tell, shard by shard.
    header = sorted((name, value) for name, value in content.metadata.items() if not name.startswith("coords"))
    return _Kind(plan, tuple(content.names), tuple(header), store.row_schema(shard))


def _add(shards: list[_Planned], kind: _Kind, size: int, shard: int, rows: list[int]) -> None:
    while rows:
        if not shards or shards[-1].size >= size or shards[-1].kind != kind:
            shards.append(_Planned(kind))
        room = size - shards[-1].size
        shards[-1].rows[shard] = rows[:room]
        rows = rows[room:]


def _write_part(
    store: CommittedStore, root: Path, shards: list[_Planned], parts: Mapping[str, float], seed: int
) -> PartSummary:
    dataset = _dataset(store, root.name, shards, parts, seed)
    plan_hash = dataset["plan_hash"]
    claim(LocalFiles(root), dataset)
    read = lru_cache(maxsize=2)(store.shard)
    with locked(root, exclusive=False):
        left = [number for number in range(len(shards)) if read_commit(root, number, plan_hash) is None]
        for number in left:
            planned = shards[number]
            samples, schema = [*_samples(planned, read)], planned.kind.rows
            header = {name: value for name, value in planned.kind.header if name in ("tokenizer", "fingerprint")}
            write_shard(root, number, samples, planned.errors, header=header, plan_hash=plan_hash, schema=schema)
    count = sum(planned.size for planned in shards)
    errors = sum(len(planned.errors) for planned in shards)
    return PartSummary(str(root), count, len(shards), len(left), errors, plan_hash)


def _dataset(
    store: CommittedStore, name: str, shards: list[_Planned], parts: Mapping[str, float], seed: int
) -> dict[str, Any]:
    plans = origins(store.dataset)
    found = []
    end = 0
    for plan, group in groupby(shards, key=lambda planned: planned.kind.plan):
        count = len([*group])
        found.append(Origin(range(end, end + count), plans[plan].plan))
        end += count
    content = [digest for record in store.commits.values() for digest in record["sha256"].values()]
    split_from = {
        "plan_hash": store.dataset["plan_hash"],
        "parts": dict(parts),
        "seed": seed,
        "split": store.dataset.get("split"),
    }
    return dataset_of(found or [Origin(range(0), plans[0].plan)], content, split=name, split_from=split_from)


def _samples(planned: _Planned, read: Callable[[int], ShardContent]) -> Iterator[Sample]:
    for shard, rows in planned.rows.items():
        content = read(shard)
        for index, row in zip(rows, _row_values(content.rows.take(rows)), strict=True):
            yield Sample(row, content.specs[index], content.tokens(index))


def _row_values(table: pa.Table) -> list[dict[str, Any]]:
    # Scalars of times stay Arrow's: Python has none of nanoseconds.
    columns = {
        name: list(column) if pa.types.is_temporal(column.type) else column.to_pylist()
        for name, column in zip(table.column_names, table.columns, strict=True)
    }
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
