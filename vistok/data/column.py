"""One column of a token store across its shards, in the dtype of the store.

n tokens of a sample, T tokens of several, S samples.
"""

from bisect import bisect_right
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from vistok.data.shard_header import REMEDY
from vistok.data.shard_reader import Array, Part

if TYPE_CHECKING:
    from vistok.data.store import Indices, TokenStore


class Ragged(NamedTuple):
    """Samples without padding: sample s has values[offsets[s]:offsets[s + 1]]. values [T, ...], offsets [S + 1] int64.

    uint16 has few operations: `values.to(torch.int64)` first.
    """

    values: Tensor
    offsets: Tensor


class RaggedView(NamedTuple):
    """As Ragged, in numpy and read-only: of a local store the mapped file itself. bfloat16 is its bits as uint16."""

    values: Array
    offsets: Array


class _OpenPart(NamedTuple):
    """This column in one shard, and the index of the first sample there: one tuple is quicker to read than a Part."""

    part: Part
    values: Array | None
    starts: memoryview
    stops: memoryview
    first: int


class Column:
    """Random access, batched gather and scan; pickles with its store."""

    def __init__(self, store: "TokenStore", name: str) -> None:
        self.name = name
        self._store = store
        self._ends = store.ends
        self._parts: list[_OpenPart | None] = [None] * len(self._ends)
        self._code: str | None = None
        self._bits: torch.dtype | None = None

    def __reduce__(self) -> tuple[type["Column"], tuple["TokenStore", str]]:
        return Column, (self._store, self.name)

    def __len__(self) -> int:
        return len(self._store)

    def __getitem__(self, index: int) -> Tensor:
        """Tokens [n, ...] of one sample, a copy. Raises: IndexError; TypeError for anything but an integer."""
        values = torch.from_numpy(self.view(index).copy())
        return values if self._bits is None else values.view(self._bits)

    def view(self, index: int) -> Array:
        """Tokens [n, ...] of one sample, read-only: of a local store the mapped file itself; bfloat16 as its bits.

        Raises: as `column[i]`.
        """
        # Written out, because this is the inner loop of reading single samples.
        at = index if index >= 0 else index + len(self._store)
        slot = bisect_right(self._ends, at)
        if at < 0 or slot == len(self._ends):
            raise self._store.out_of_range(index)
        part, values, starts, stops, first = self._parts[slot] or self._open(slot)
        if values is None:
            return part.read(at - first)
        return values[starts[at - first] : stops[at - first]]

    def gather(self, indices: "Indices") -> Ragged:
        """Several samples in the order asked, any of them more than once. Raises: IndexError, TypeError."""
        pieces = self._pieces(self._store.as_list(indices))
        offsets = np.zeros(len(pieces) + 1, np.int64)
        np.cumsum([len(piece) for piece in pieces], out=offsets[1:])
        values = torch.from_numpy(np.concatenate(pieces or [self._none()]))
        return Ragged(values if self._bits is None else values.view(self._bits), torch.from_numpy(offsets))

    def scan(self) -> Iterator[RaggedView]:
        """All samples shard by shard; shards without samples are left out."""
        for slot, shard in enumerate(self._store.opened()):
            if not shard.samples:
                continue
            part, _, starts, stops, _ = self._parts[slot] or self._open(slot)
            values = part.whole()
            if len(values) > shard.offsets[-1]:  # a budget leaves some out
                values = np.concatenate([values[starts[row] : stops[row]] for row in range(shard.samples)])
            yield RaggedView(values, shard.offsets)

    def _pieces(self, indices: list[int]) -> list[Array]:
        if self._store.files.mapped:
            return [self.view(index) for index in indices]
        places = self._store.places(indices)
        return self._store.files.fetch([(self._parts[slot] or self._open(slot)).part.span(row) for slot, row in places])

    def _none(self) -> Array:
        filled = (slot for slot, shard in enumerate(self._store.opened()) if shard.samples)
        extents = (self._open(slot).part.extent for slot in filled)
        return next((np.zeros((0, *extent.shape[1:]), extent.dtype) for extent in extents), np.zeros(0, np.uint16))

    def _open(self, slot: int) -> "_OpenPart":
        part = self._store.opened_shard(slot).column(self.name)
        if self._code not in (None, part.extent.code):
            raise ValueError(
                f"{part.file.name}: expected {self.name} as {self._code}, like the shards before, got "
                f"{part.extent.code}; {REMEDY}"
            )
        self._code, self._bits = part.extent.code, part.bits
        first = self._ends[slot - 1] if slot else 0
        found = self._parts[slot] = _OpenPart(part, part.values, part.starts, part.stops, first)
        return found
