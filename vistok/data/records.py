"""The two JSON records that make a folder a token store: dataset.json, and one commit record per finished shard."""

import json
from typing import Any, NamedTuple

FORMAT = "vistok-store"
_MOST_SHARDS = 10**7
_DATASET_FIELDS = {"plan_hash": str, "num_shards": int, "tokenizer": str, "fingerprint": str, "columns": dict}


class ShardNames(NamedTuple):
    """Names of the parts of one shard, relative to its store."""

    tensors: str
    rows: str
    errors: str
    commit: str


def shard_names(shard: int) -> ShardNames:
    """Where the parts of shard number `shard` lie."""
    name = f"{shard:05d}"
    return ShardNames(
        f"shards/{name}.safetensors", f"shards/{name}.parquet", f"errors/{name}.jsonl", f"commits/{name}.json"
    )


def attempt_name(path: str, attempt: str) -> str:
    """Where an attempt of that name (32 hex digits) keeps what may become a part of a shard."""
    return f"{path}.attempt.{attempt}"


def dataset_record(content: bytes, name: str, version: int) -> dict[str, Any]:
    """dataset.json from its bytes; `name` is what errors call it. Raises: ValueError if it is of another kind."""
    try:
        dataset = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name}: expected JSON, got {error}") from error
    if not isinstance(dataset, dict) or dataset.get("format") != FORMAT:
        raise ValueError(f"{name}: expected format {FORMAT!r}, this file describes something else")
    if dataset.get("version") != version:
        raise ValueError(f"{name}: expected version {version}, got {dataset.get('version')}; update vistok")
    for field, kind in _DATASET_FIELDS.items():
        if type(dataset.get(field)) is not kind:
            raise ValueError(f"{name}: expected {field!r} ({kind.__name__}), got {dataset.get(field)!r}; encode again")
    if not 0 <= dataset["num_shards"] <= _MOST_SHARDS:
        raise ValueError(f"{name}: expected num_shards in 0..{_MOST_SHARDS}, got {dataset['num_shards']}; encode again")
    return dataset


def commit_record(content: bytes, name: str, plan_hash: str) -> dict[str, Any] | None:
    """A commit record from its bytes, None if it is another plan's. Raises: ValueError if it is no such record."""
    try:
        record = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{name}: expected a commit record in JSON, got {error}; delete it and encode again"
        ) from error
    if not isinstance(record, dict):
        raise ValueError(f"{name}: expected a commit record, got {type(record).__name__}; delete it and encode again")
    if record.get("plan_hash") != plan_hash:
        return None
    for field in ("n_samples", "n_tokens", "bytes"):
        count = record.get(field)
        if type(count) is not int or count < 0:
            raise ValueError(f"{name}: expected {field} >= 0, got {count!r}; delete it and encode again")
    return record
