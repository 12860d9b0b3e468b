"""What a token store holds and how far it is, in numbers."""

from collections import Counter
from pathlib import Path
from typing import Any

from vistok.data.origin import origins
from vistok.data.shard import ROW_SCHEMA
from vistok.data.shard_content import CommittedStore, open_committed


def summarize_store(path: str | Path) -> dict[str, Any]:
    """Facts by name: tokenizer, plan, columns, split, counts, failed samples by error class, captions, user columns.

    Raises: FileNotFoundError, ValueError if `path` is no store, or naming the file that cannot be read.
    """
    store = open_committed(path)
    dataset, records = store.dataset, store.commits.values()
    plans = [origin.plan["plan_hash"] for origin in origins(dataset)]
    return {
        "tokenizer": dataset["tokenizer"],
        "fingerprint": dataset["fingerprint"],
        "plan": dataset["plan_hash"],
        "columns": dataset["columns"],
        "split": dataset.get("split"),
        "split_from": dataset.get("split_from"),
        "merged_from": plans if "merged_from" in dataset else [],
        "shards_committed": len(records),
        "shards_planned": dataset["num_shards"],
        **{name: sum(record[f"n_{name}"] for record in records) for name in ("samples", "tokens", "errors")},
        "errors_by_reason": _reasons(store),
        "captions": sum(_captions(store, shard) for shard in store.commits),
        "user_columns": _user_columns(store),
        "bytes": sum(record["bytes"] for record in records),
    }


def _reasons(store: CommittedStore) -> dict[str, int]:
    reasons = Counter(str(error.get("error")) for shard in store.commits for error in store.errors(shard))
    return dict(reasons.most_common())


def _captions(store: CommittedStore, shard: int) -> int:
    captions = store.row_column(shard, "caption")
    return len(captions) - int(captions.null_count)


def _user_columns(store: CommittedStore) -> dict[str, str]:
    first = next(iter(store.commits), None)
    schema = store.row_schema(first) if first is not None else []
    return {field.name: str(field.type) for field in schema if field.name not in ROW_SCHEMA.names}
