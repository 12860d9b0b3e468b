"""Several stores of one tokenizer as one: their shards copied byte for byte and numbered anew.

Written as `vistok encode` writes: dataset.json first, of each shard the commit record last. What was interrupted goes
on when it is run again.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from vistok.data.claim import claim, folder_apart
from vistok.data.local_files import LocalFiles
from vistok.data.origin import Origin, dataset_of, origins
from vistok.data.shard import locked, read_commit, shard_files, write_atomic
from vistok.data.shard_content import CommittedStore, open_committed, repeated_keys
from vistok.data.shard_header import REMEDY

_SHOWN = 5


@dataclass(frozen=True)
class MergeSummary:
    """shards, samples, tokens, bytes, errors: of the whole new store; copied: shards of this run."""

    stores: int
    shards: int
    copied: int
    samples: int
    tokens: int
    bytes: int
    errors: int
    plan_hash: str


def merge_stores(sources: Sequence[str | Path], out: str | Path, *, allow_incomplete: bool = False) -> MergeSummary:
    """Copy the shards of `sources`, in this order, into the new store `out`.

    allow_incomplete: take the committed shards of a store that lacks some. Raises: FileNotFoundError, ValueError if a
    source is no store, is incomplete or damaged, if tokenizers, columns or keys do not go together, or if `out` holds
    something else.
    """
    if not sources:
        raise ValueError("merge: expected at least one store and the folder of the new one, got no store")
    stores = [open_committed(source) for source in sources]
    root = folder_apart(out, [store.root for store in stores])
    for store in stores:
        store.check_complete(allow_incomplete)
    _check_alike(stores)
    _check_keys(stores)
    parts = [(store, shard) for store in stores for shard in store.commits]
    hashes = [digest for store, shard in parts for digest in store.commits[shard]["sha256"].values()]
    dataset = dataset_of(_renumbered(stores), hashes)
    claim(LocalFiles(root), dataset)
    with locked(root, exclusive=False):
        plan_hash = dataset["plan_hash"]
        left = [number for number in range(len(parts)) if read_commit(root, number, plan_hash) is None]
        for number in left:
            _copy_shard(*parts[number], root, number, plan_hash)
    records = [store.commits[shard] for store, shard in parts]
    samples, tokens, size, errors = (
        sum(record[name] for record in records) for name in ("n_samples", "n_tokens", "bytes", "n_errors")
    )
    return MergeSummary(len(stores), len(parts), len(left), samples, tokens, size, errors, plan_hash)


def _renumbered(stores: Sequence[CommittedStore]) -> list[Origin]:
    found = []
    end = 0
    for store in stores:
        for origin in origins(store.dataset):
            count = sum(shard in origin.shards for shard in store.commits)
            found.append(Origin(range(end, end + count), origin.plan))
            end += count
    return [origin for origin in found if origin.shards] or found[:1]


def _check_alike(stores: Sequence[CommittedStore]) -> None:
    first = stores[0]
    for store in stores[1:]:
        if store.dataset["fingerprint"] != first.dataset["fingerprint"]:
            raise ValueError(
                f"{store.root}: expected the tokenizer of {first.root}, {_name(first)}, got {_name(store)}"
            )
        if store.dataset["columns"] != first.dataset["columns"]:
            raise ValueError(
                f"{store.root}: expected the columns of {first.root}, {first.dataset['columns']}, "
                f"got {store.dataset['columns']}; encode one of them again"
            )
    schemas = ((store, shard, store.row_schema(shard)) for store in stores for shard in store.commits)
    begin = next(schemas, None)
    for store, shard, schema in schemas:
        if begin is not None and not schema.equals(begin[2]):
            raise ValueError(
                f"{shard_files(store.root, shard).rows}: expected the row columns of {begin[0].root}; "
                f"{'; '.join(_schema_differences(begin[2], schema))}"
            )


def _name(store: CommittedStore) -> str:
    return f"{store.dataset['tokenizer']} {store.dataset['fingerprint'][:16]}"


def _schema_differences(expected: pa.Schema, got: pa.Schema) -> Iterator[str]:
    kinds = [{field.name: str(field.type) for field in schema} for schema in (expected, got)]
    names = {**kinds[0], **kinds[1]}
    differing = [name for name in names if kinds[0].get(name) != kinds[1].get(name)]
    for name in differing:
        yield f"{name}: {kinds[0].get(name, 'none')} there, {kinds[1].get(name, 'none')} here"
    if not differing:
        yield f"their order: {', '.join(kinds[0])} there, {', '.join(kinds[1])} here"


def _check_keys(stores: Sequence[CommittedStore]) -> None:
    repeated = repeated_keys([store.row_column(shard, "key") for store in stores for shard in store.commits])
    if len(repeated):
        more = f" and {len(repeated) - _SHOWN} more" if len(repeated) > _SHOWN else ""
        shown = ", ".join(repr(key) for key in repeated[:_SHOWN].to_pylist())
        raise ValueError(
            f"merge: expected every key once in all stores together, got {shown}{more} several times; "
            "leave out the store that repeats them, or encode from a folder above, so that keys tell them apart"
        )


def _copy_shard(store: CommittedStore, shard: int, root: Path, number: int, plan_hash: str) -> None:
    source, target = shard_files(store.root, shard), shard_files(root, number)
    record = store.commits[shard]
    hashes = {}
    for here, there in zip(source[:2], target[:2], strict=True):
        content = here.read_bytes()
        hashes[there.name] = hashlib.sha256(content).hexdigest()
        if hashes[there.name] != record["sha256"][here.name]:
            raise ValueError(f"{here}: is not what its commit record says; {REMEDY}")
        write_atomic(there, content)
    if record["n_errors"]:
        write_atomic(target.errors, source.errors.read_bytes())
    record = {**record, "shard": number, "plan_hash": plan_hash, "sha256": hashes}
    write_atomic(target.commit, (json.dumps(record, indent=2) + "\n").encode())
