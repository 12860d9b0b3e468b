"""Which plan made which shards of a store: one plan for a store that was encoded, several for a merged one.

dataset.json holds the fields that all of them share; where they differ, `merged_from` lists each plan's own fields with
the number of its shards.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from vistok.data.shard import FORMAT_VERSION

_OF_THE_STORE = ("format", "version", "plan_hash", "num_shards", "merged_from", "content_sha256")


class Origin(NamedTuple):
    """Shards (numbers in the store) and the plan that made them: its fields as in dataset.json, with its plan_hash."""

    shards: range
    plan: dict[str, Any]


def origins(dataset: Mapping[str, Any]) -> list[Origin]:
    """The plans of a store in the order of their shards. Raises: ValueError if merged_from does not tell them all."""
    shared = {name: value for name, value in dataset.items() if name not in _OF_THE_STORE}
    if "merged_from" not in dataset:
        return [Origin(range(dataset["num_shards"]), {**shared, "plan_hash": dataset["plan_hash"]})]
    found = []
    end = 0
    for entry in _checked_entries(dataset):
        own = {name: value for name, value in entry.items() if name != "num_shards"}
        begin, end = end, end + entry["num_shards"]
        found.append(Origin(range(begin, end), {**shared, **own}))
    return found


def _checked_entries(dataset: Mapping[str, Any]) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = dataset["merged_from"]
    sound = isinstance(entries, list) and all(
        isinstance(entry, dict) and type(entry.get("num_shards")) is int and isinstance(entry.get("plan_hash"), str)
        for entry in entries
    )
    if not sound or sum(entry["num_shards"] for entry in entries) != dataset["num_shards"]:
        raise ValueError(
            f"dataset.json: expected merged_from to tell the plans of {dataset['num_shards']} shards, got "
            f"{entries!r:.200}; restore the file from a copy, or merge again"
        )
    return entries


def dataset_of(found: Sequence[Origin], content: Sequence[str], **changes: Any) -> dict[str, Any]:
    """dataset.json of a new store whose shards come from `found`; its plan hash is the sha256 of all that it says.

    content: what tells the stored bytes, such as the hashes of the files they are taken from. changes: fields that the
    new store has of its own.
    """
    plans = [{**origin.plan, **changes} for origin in found]
    names = {name: None for plan in plans for name in plan if name != "plan_hash"}
    same = [name for name in names if all(name in plan and plan[name] == plans[0].get(name) for plan in plans)]
    record = {name: plans[0][name] for name in same}
    # A store has a tokenizer; one that goes by two names is known by the first.
    record |= {name: plans[0][name] for name in ("tokenizer", "fingerprint", "columns")}
    if len(plans) > 1:
        record["merged_from"] = [
            {
                "num_shards": len(origin.shards),
                **{name: value for name, value in plan.items() if name not in same},
            }
            for origin, plan in zip(found, plans, strict=True)
        ]
    record["content_sha256"] = hashlib.sha256(json.dumps(list(content)).encode()).hexdigest()
    plan_hash = hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()
    shards = sum(len(origin.shards) for origin in found)
    return {"format": "vistok-store", "version": FORMAT_VERSION, "plan_hash": plan_hash, "num_shards": shards, **record}
