"""A shard as an Arrow table: the columns of its rows and one list column for each column of its tokens.

A sample's tokens are list<dtype>, or list<fixed_size_list<dtype, D>> where a token is a vector. bfloat16, which Arrow
lacks, becomes float32.
"""

from collections.abc import Iterable
from itertools import accumulate
from typing import NamedTuple

import pyarrow as pa
import torch
from torch import Tensor

from vistok.data.shard_content import COLUMNS, ShardContent


class ColumnKind(NamedTuple):
    """Dtype in memory and shape of one token: () or (D,)."""

    dtype: torch.dtype
    token: tuple[int, ...]


def column_kinds(shards: Iterable[ShardContent]) -> dict[str, ColumnKind]:
    """The token columns of all shards together.

    Coords that follow from the grid are left out unless another shard stores some. Raises: ValueError if shards differ
    in the dtype or width of a column.
    """
    found: dict[str, ColumnKind] = {}
    for content in shards:
        for name in filter(content.is_stored, content.names):
            values = content.empty(name)
            kind = ColumnKind(_dtype(values), tuple(values.shape[1:]))
            if found.setdefault(name, kind) != kind:
                raise ValueError(f"{name}: expected one dtype and width in all shards, got {found[name]} and {kind}")
    return {name: found[name] for name in COLUMNS if name in found}


def to_table(content: ShardContent, kinds: dict[str, ColumnKind]) -> pa.Table:
    """One shard; a column of `kinds` that it lacks is null in all its rows."""
    table = content.rows
    for name, kind in kinds.items():
        array = _lists(content, name, kind) if name in content.names else pa.nulls(len(table), _type(kind))
        # Rows have a `source` as well, the file that the picture came from.
        free = name if name not in content.rows.column_names else f"token_{name}"
        table = table.append_column(free, array)
    return table.replace_schema_metadata(None)


def as_numpy_dtype(values: Tensor) -> Tensor:
    """The same numbers in a dtype that numpy and Arrow have."""
    return values.to(_dtype(values))


def _lists(content: ShardContent, name: str, kind: ColumnKind) -> pa.ListArray:
    values = content.column(name)
    flat = pa.array(as_numpy_dtype(values).reshape(-1).numpy())
    items = pa.FixedSizeListArray.from_arrays(flat, kind.token[0]) if kind.token else flat
    return pa.ListArray.from_arrays(pa.array([0, *accumulate(content.lengths)], pa.int32()), items, type=_type(kind))


def _type(kind: ColumnKind) -> pa.DataType:
    flat = pa.from_numpy_dtype(torch.empty(0, dtype=kind.dtype).numpy().dtype)
    return pa.list_(pa.list_(flat, kind.token[0]) if kind.token else flat)


def _dtype(values: Tensor) -> torch.dtype:
    return torch.float32 if values.dtype == torch.bfloat16 else values.dtype
