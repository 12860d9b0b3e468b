"""Which samples differ between two token stores, and why: other pictures, another tokenizer, transform, decoder, plan.

n tokens of a sample in the one store, m in the other.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vistok.data.origin import origins
from vistok.data.shard_content import CommittedStore, ShardContent, open_committed

UNEXPLAINED = "unexplained"
_FIRST_FIELDS = ("tokenizer", "fingerprint", "transform", "decoder")
# What changes no token by itself; `inputs` counts if the pictures differ, because then other ones share a batch.
_HARMLESS = ("plan_hash", "inputs", "fields", "split", "split_from", "merged_from")
_OPEN_SHARDS = 4


@dataclass(frozen=True)
class SampleDiff:
    """A sample that differs: share of its tokens, largest |a - b| of embeds (None without), and the causes.

    causes: "data", or fields of the plan, or "unexplained".
    """

    key: str
    share: float
    max_abs: float | None
    causes: tuple[str, ...]


@dataclass(frozen=True)
class StoreDiff:
    """Keys in one store only, number of equal samples, the samples that differ, and the fields in which plans differ.

    fields: name -> (value in a, value in b), of samples that both have; in the order in which they are blamed.
    """

    only_a: tuple[str, ...] = ()
    only_b: tuple[str, ...] = ()
    equal: int = 0
    different: tuple[SampleDiff, ...] = ()
    fields: dict[str, tuple[Any, Any]] = field(default_factory=dict)

    @property
    def same(self) -> bool:
        """Whether both hold the same tokens under the same keys."""
        return not (self.only_a or self.only_b or self.different)

    @property
    def causes(self) -> dict[str, int]:
        """How many samples differ for each cause."""
        return dict(Counter(cause for sample in self.different for cause in sample.causes))


def diff_stores(a: str | Path, b: str | Path) -> StoreDiff:
    """Compare the committed samples of two stores by key: every column that both have.

    Raises: FileNotFoundError, ValueError if one is no store or cannot be read.
    """
    store_a, store_b = open_committed(a), open_committed(b)
    places_a, places_b = _places(store_a), _places(store_b)
    only_a = tuple(key for key in places_a if key not in places_b)
    only_b = tuple(key for key in places_b if key not in places_a)
    plans = _plan_differences(store_a, store_b, same_pictures=not only_a and not only_b)
    read_a, read_b = (lru_cache(maxsize=_OPEN_SHARDS)(store.shard) for store in (store_a, store_b))
    equal = 0
    different: list[SampleDiff] = []
    fields: dict[str, tuple[Any, Any]] = {}
    for key in (key for key in places_a if key in places_b):
        (shard_a, row_a), (shard_b, row_b) = places_a[key], places_b[key]
        in_a, in_b = read_a(shard_a), read_b(shard_b)
        fields |= plans(shard_a, shard_b)
        share, max_abs = compare_tokens(in_a.tokens(row_a), in_b.tokens(row_b))
        if share == 0:
            equal += 1
        elif _other_picture(_digest(in_a, row_a), _digest(in_b, row_b)):
            different.append(SampleDiff(key, share, max_abs, ("data",)))
        else:
            causes = tuple(plans(shard_a, shard_b)) or (UNEXPLAINED,)
            different.append(SampleDiff(key, share, max_abs, causes))
    return StoreDiff(only_a, only_b, equal, tuple(different), {name: fields[name] for name in _in_order(fields)})


def compare_tokens(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> tuple[float, float | None]:
    """Share of differing tokens and largest |a - b| of embeds (None if not comparable); name -> [n, ...] and [m, ...].

    A token differs if any of its columns does; tokens that one side lacks differ.
    """
    names = [name for name in a if name in b]
    n, m = (max((len(values) for values in columns.values()), default=0) for columns in (a, b))
    common, longest = min(n, m), max(n, m)
    differs = torch.full((common,), not names)
    max_abs = None
    for name in names:
        ours, theirs = _as_rows(a[name][:common]), _as_rows(b[name][:common])
        if ours.shape != theirs.shape:
            return 1.0, None
        differs |= (ours != theirs).any(dim=1)
        if name == "embeds":
            max_abs = float((ours - theirs).abs().max()) if ours.numel() else 0.0
    if max_abs is not None and not math.isfinite(max_abs):  # a damaged store
        max_abs = None
    return (int(differs.sum()) + longest - common) / max(longest, 1), max_abs


def _as_rows(values: Tensor) -> Tensor:
    wide = values.to(torch.float64 if values.is_floating_point() else torch.int64)
    return wide.flatten(1) if wide.ndim > 1 else wide[:, None]


def _places(store: CommittedStore) -> dict[str, tuple[int, int]]:
    return {
        key: (shard, row)
        for shard in store.commits
        for row, key in enumerate(store.row_column(shard, "key").to_pylist())
    }


def _plan_differences(
    a: CommittedStore, b: CommittedStore, *, same_pictures: bool
) -> Callable[[int, int], dict[str, tuple[Any, Any]]]:
    """For shards of a and b: the fields in which the plans that made them differ, in the order of blame."""
    harmless = {*_HARMLESS} - (set() if same_pictures else {"inputs"})
    plans_a, plans_b = (
        {shard: origin.plan for origin in origins(store.dataset) for shard in origin.shards if shard in store.commits}
        for store in (a, b)
    )

    @cache
    def differences(shard_a: int, shard_b: int) -> dict[str, tuple[Any, Any]]:
        here, there = plans_a[shard_a], plans_b[shard_b]
        names = [name for name in {**here, **there} if name not in harmless and here.get(name) != there.get(name)]
        return {name: (here.get(name), there.get(name)) for name in _in_order(names)}

    return differences


def _in_order(names: Iterable[str]) -> list[str]:
    first = [name for name in _FIRST_FIELDS if name in names]
    return first + sorted({*names} - {*first})


def _digest(content: ShardContent, row: int) -> str | None:
    if "digest" not in content.rows.column_names:
        return None
    digest: str | None = content.rows["digest"][row].as_py()
    return digest


def _other_picture(a: str | None, b: str | None) -> bool:
    return a is not None and b is not None and a != b
