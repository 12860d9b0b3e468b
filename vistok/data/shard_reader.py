"""One opened shard of a token store: where each sample's tokens lie in each column, and how they become a TokenTensor.

n tokens of a sample, T tokens of a shard, S samples of a shard.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property, lru_cache
from math import prod
from typing import Any, NamedTuple, Protocol

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from vistok.data.shard_header import REMEDY, ByteFile, Extent, ShardHeader, read_header
from vistok.rows import grid_coords
from vistok.tokens import TokenTensor

Array = np.ndarray[Any, np.dtype[Any]]
Budget = int | float | None

_IN_MEMORY = {
    "indices": np.int64,
    "embeds": np.float32,
    "coords": np.int32,
    "scores": np.float32,
    "source": np.int64,
    "sizes": np.float32,
}
_PREFIX_ORDERS = ("1d", "causal-1d")  # orders in which the first tokens of a sample are a sample


class TensorFile(ByteFile, Protocol):
    """The safetensors file of a shard. `array` is read-only; it costs nothing if `mapped`, else it is one range read.

    The range of `array` counts entries of the first axis.
    """

    mapped: bool

    def array(self, extent: Extent, start: int, stop: int) -> Array: ...


class Part:
    """One column of one shard: sample r has its tokens starts[r]..stops[r]; `values` [T, ...] if they are mapped."""

    def __init__(self, file: TensorFile, name: str, extent: Extent, starts: memoryview, stops: memoryview) -> None:
        self.file, self.name, self.extent = file, name, extent
        self.starts, self.stops = starts, stops
        self.values: Array | None = self.whole() if file.mapped else None
        self.bits = torch.bfloat16 if extent.code == "BF16" else None  # what `values` are the bits of

    def whole(self) -> Array:
        """[T, ...] as stored, read-only."""
        return self.file.array(self.extent, 0, self.extent.shape[0])

    def span(self, row: int) -> "Span":
        """Where the tokens of a sample lie."""
        return Span(self, self.starts[row], self.stops[row])

    def read(self, row: int) -> Array:
        """[n, ...] as stored, read-only."""
        return self.file.array(self.extent, self.starts[row], self.stops[row])

    def in_memory(self, values: Array) -> Tensor:
        """Values [n, ...] as a field [1, n, ...] of a TokenTensor: a copy in the dtype that the field has."""
        values = values[None]
        if self.bits is not None:
            return torch.from_numpy((values.astype(np.uint32) << 16).view(np.float32))
        return torch.from_numpy(values.astype(_IN_MEMORY[self.name]))


class Span(NamedTuple):
    """Tokens start..stop of one column of one shard."""

    part: Part
    start: int
    stop: int


class OpenShard:
    """The columns of a shard, its header and offsets checked.

    parts: by column name. offsets [S + 1] int64: where the samples begin if they lie side by side, under the budget.
    """

    def __init__(
        self, file: TensorFile, samples: int, budget: Budget, read_rows: Callable[[list[str]], pa.Table]
    ) -> None:
        """samples: what the commit record says. budget: read only the first tokens of each sample.

        Raises: ValueError naming the file if anything in it does not hold, or if its order allows no budget.
        """
        self.file, self.samples = file, samples
        self.header: ShardHeader = read_header(file)
        order = self.header.spec.order
        if budget is not None and samples and order not in _PREFIX_ORDERS:
            raise ValueError(
                f"{file.name}: a budget reads the first tokens of each sample, expected order 'causal-1d' or '1d', got "
                f"{order!r}; read whole samples and prune them"
            )
        self._read_rows = read_rows
        if samples and not self.header.columns:
            raise ValueError(f"{file.name}: expected columns for {samples} samples, got none; {REMEDY}")
        ends = self._ends()
        self._whole_offsets = self.offsets = ends
        stop = ends[1:]
        if budget is not None:
            lengths = cut_lengths(np.diff(ends), budget)
            self.offsets, stop = np.concatenate([[0], np.cumsum(lengths)]), ends[:-1] + lengths
        starts, stops = ends[:-1].data, stop.data  # they give ints, several times faster than an array does
        self.parts = {
            name: Part(file, name, values, starts, stops) for name, (values, _) in self.header.columns.items()
        }

    @property
    def lengths(self) -> Array:
        """Tokens of each sample [S] int64, under the budget."""
        return np.diff(self.offsets)

    def spans(self, row: int) -> list[Span]:
        """Where the tokens of a sample lie, per column."""
        return [part.span(row) for part in self.parts.values()]

    def tokens(self, row: int, values: Iterator[Array]) -> TokenTensor:
        """A sample as a batch of one; takes from `values` what `spans` asked for."""
        spec = self.specs[row]
        fields = {name: part.in_memory(next(values)) for name, part in self.parts.items()}
        if self.header.whole_grids:
            count = next(iter(fields.values())).shape[1]
            fields["coords"] = torch.from_numpy(_cells(*spec.grid)[:, :count].copy())
        return TokenTensor(spec, **fields)

    @cached_property
    def specs(self) -> list[Any]:
        """The TokenSpec of each sample; samples of one grid and image size share it."""
        table = self._read_rows(["grid", "image_size"])
        known: dict[tuple[Any, Any], Any] = {}
        found = []
        for grid, size in zip(_tuples(table["grid"]), _tuples(table["image_size"]), strict=True):
            if (grid, size) not in known:
                if any(side is None or side < 0 for side in grid + size):
                    raise ValueError(
                        f"{self.file.name}: expected rows of grids and sizes, got {grid}, {size}; {REMEDY}"
                    )
                known[grid, size] = replace(self.header.spec, grid=grid, image_size=size)
            found.append(known[grid, size])
        if self.header.whole_grids and self.parts:
            self._check_grids([spec.grid for spec in found])
        return found

    def column(self, name: str) -> Part:
        """A column by name. Raises: ValueError naming the file if it has none."""
        if name in self.parts:
            return self.parts[name]
        if name == "coords" and self.header.whole_grids:
            return self._grid_coords()
        raise ValueError(f"{self.file.name}: expected a column {name!r}, got {', '.join(self.parts)}; {REMEDY}")

    def _ends(self) -> Array:
        read: dict[int, Array] = {}
        for name, (values, offsets) in self.header.columns.items():
            if offsets.start not in read:
                # A copy: aligned, native and readable without a page fault.
                read[offsets.start] = np.array(self.file.array(offsets, 0, offsets.shape[0]), dtype=np.int64)
            self._check_ends(name, read[offsets.start], values.shape[0])
        ends, *others = read.values() or [np.zeros(1, np.int64)]
        if not all(np.array_equal(ends, other) for other in others):
            raise ValueError(f"{self.file.name}: expected all columns of a sample to be equally long; {REMEDY}")
        return ends

    def _check_ends(self, name: str, ends: Array, total: int) -> None:
        if len(ends) != self.samples + 1 or ends[0] != 0 or ends[-1] != total or (ends[1:] < ends[:-1]).any():
            raise ValueError(
                f"{self.file.name}: expected offsets of {name} to rise from 0 to {total} in {self.samples} steps, got "
                f"{len(ends)} of them, {ends[:3].tolist()} to {ends[-1:].tolist()}; {REMEDY}"
            )

    def _grid_coords(self) -> Part:
        # No file holds the coords of whole grids: [T, 2] int16, the column that they would be.
        first = next(iter(self.parts.values()))
        values = np.concatenate([_cells(*spec.grid)[0] for spec in self.specs]).astype(np.int16)
        extent = Extent("I16", values.dtype, values.shape, 0, values.nbytes)
        return Part(_Computed(self.file.name, values), "coords", extent, first.starts, first.stops)

    def _check_grids(self, grids: Sequence[tuple[int, ...]]) -> None:
        for row, (grid, length) in enumerate(zip(grids, np.diff(self._whole_offsets).tolist(), strict=True)):
            if len(grid) != 2 or prod(grid) != length:
                raise ValueError(
                    f"{self.file.name}: expected sample {row} to have the {length} tokens of its whole grid, its row "
                    f"says grid {list(grid)}; {REMEDY}"
                )


class _Computed:
    """A TensorFile whose one tensor is in memory."""

    mapped = True

    def __init__(self, name: str, values: Array) -> None:
        self.name, self.size, self._values = name, values.nbytes, values

    def read(self, start: int, stop: int) -> bytes:
        return self._values.tobytes()[start:stop]

    def array(self, extent: Extent, start: int, stop: int) -> Array:
        return self._values[start:stop]


def cut_lengths(lengths: Array, budget: int | float) -> Array:
    """min(n, budget), or for a float max(1, round(budget * n)), and never more than there are."""
    if isinstance(budget, float):
        return np.minimum(lengths, np.maximum(1, np.round(budget * lengths).astype(np.int64)))
    return np.minimum(lengths, budget)


def _tuples(column: pa.ChunkedArray) -> Iterable[tuple[int, ...]]:
    return (() if value is None else tuple(value) for value in column.to_pylist())


@lru_cache(maxsize=256)
def _cells(rows: int, cols: int) -> Array:
    return grid_coords(rows, cols).numpy()
