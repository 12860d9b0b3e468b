"""Local codes of a visual tokenizer as token ids of a language model, and whole images among its text.

A visual tokenizer counts its codes from 0; a language model knows them as strings with ids of its own, in any order.
Ids are always looked up by string, never assumed. N codes of one image, h x w its rows and columns, n ids of a
sequence, K codes of a family.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import torch
from torch import Tensor


@dataclass(frozen=True)
class TokenFamily:
    """Token strings that belong together. strings: all of them, in the order of their ids, codes as well as markers.

    begin, end: markers around an image; size_end: marker behind the text that says how many rows and columns follow;
    row_end: marker behind every row. Strings that are no marker are codes: the k-th of them is local code k. A marker
    that is not among `strings` must be one of the language model's own.
    """

    name: str
    strings: tuple[str, ...]
    begin: tuple[str, ...] = ()
    end: tuple[str, ...] = ()
    row_end: str | None = None
    size_end: str | None = None

    def __post_init__(self) -> None:
        markers = self.markers
        if len(set(self.strings)) != len(self.strings) or len(set(markers)) != len(markers) or not self.codes:
            raise ValueError(
                f"family {self.name!r}: expected strings that differ, markers that differ and at least one code, got "
                f"{len(self.strings)} strings, {len(set(self.strings))} different ones, and markers {list(markers)}"
            )
        if bool(self.begin) != bool(self.end) or (self.size_end is not None and not self.begin):
            raise ValueError(
                f"family {self.name!r}: expected markers at both ends of an image or at none, and at both where a size "
                f"is given, got begin {list(self.begin)} and end {list(self.end)}"
            )

    @property
    def markers(self) -> tuple[str, ...]:
        """Strings around and between codes, whether of this family or of the language model."""
        single = tuple(marker for marker in (self.size_end, self.row_end) if marker is not None)
        return (*self.begin, *single, *self.end)

    @cached_property
    def codes(self) -> tuple[str, ...]:
        """The string of every local code."""
        markers = set(self.markers)
        return tuple(string for string in self.strings if string not in markers)


@dataclass(frozen=True)
class VocabMap:
    """A bijection between local codes 0..K-1 and ids, with the ids of a family's markers.

    codes: id of every local code, a range where they follow one another. Raises: ValueError if an id stands twice.
    """

    name: str
    codes: range | tuple[int, ...]
    begin: tuple[int, ...] = ()
    end: tuple[int, ...] = ()
    row_end: int | None = None
    size_end: int | None = None

    def __post_init__(self) -> None:
        single = [marker for marker in (self.row_end, self.size_end) if marker is not None]
        used = [*self.codes, *self.begin, *self.end, *single]
        if not self.codes or len(set(used)) != len(used) or min(used) < 0:
            raise ValueError(
                f"{self.name}: expected ids >= 0, each of one code or marker, got {len(used)} of which "
                f"{len(set(used))} differ, the lowest {min(used, default=None)}"
            )

    @classmethod
    def of(cls, tokenizer: Any, family: TokenFamily) -> Self:
        """The ids that a Hugging Face tokenizer has for a family. Raises: ValueError naming strings it lacks."""
        known: dict[str, int] = tokenizer.get_vocab()
        wanted = tuple(dict.fromkeys((*family.strings, *family.markers)))
        missing = [string for string in wanted if string not in known]
        if missing:
            raise ValueError(
                f"family {family.name!r}: expected a tokenizer that knows all its strings, {len(missing)} of "
                f"{len(wanted)} are missing, the first {missing[0]!r}; vistok.lvlm.new_rows.attach adds them"
            )
        ids = tuple(known[string] for string in family.codes)
        follow = range(ids[0], ids[0] + len(ids))
        return cls(
            family.name,
            follow if ids == tuple(follow) else ids,
            tuple(known[string] for string in family.begin),
            tuple(known[string] for string in family.end),
            None if family.row_end is None else known[family.row_end],
            None if family.size_end is None else known[family.size_end],
        )

    def __len__(self) -> int:
        return len(self.codes)

    def to_ids(self, codes: Tensor) -> Tensor:
        """codes [...] integers in 0..K-1 -> ids [...] int64. Raises: ValueError naming the range that was given."""
        codes = self._integers(codes)
        if codes.numel() and (int(codes.min()) < 0 or int(codes.max()) >= len(self)):
            raise ValueError(
                f"{self.name}: expected codes in 0..{len(self) - 1}, got {int(codes.min())}..{int(codes.max())}; cut "
                "padding away first"
            )
        return self._table.to(codes.device)[codes]

    def to_codes(self, ids: Tensor) -> Tensor:
        """ids [...] of codes -> local codes [...] int64. Raises: ValueError naming an id that is none."""
        codes = self._lookup(ids)
        if bool((codes < 0).any()):
            raise ValueError(f"{self.name}: expected ids of its {len(self)} codes, got {int(ids[codes < 0][0])}")
        return codes

    def is_code(self, ids: Tensor) -> Tensor:
        """ids [...] -> [...] bool: which are codes of this family (markers are not)."""
        return self._lookup(ids) >= 0

    def span(self, codes: Tensor, size: Sequence[int] = ()) -> Tensor:
        """An image as the language model sees it: codes [..., N], or [..., h, w] if rows have an end -> ids [..., n].

        size: ids of the text that says how large the image is, for families with such a text.
        Raises: ValueError if codes have no rows where rows have an end, or a size is missing or has no place.
        """
        if bool(size) != (self.size_end is not None):
            wanted = "ids of the text with rows and columns" if self.size_end is not None else "no size"
            raise ValueError(f"{self.name}: expected {wanted}, got {list(size)}")
        ids = self.to_ids(codes)
        if self.row_end is not None:
            if codes.ndim < 2:
                raise ValueError(f"{self.name}: expected codes [..., h, w], its rows have an end; got {[*codes.shape]}")
            ids = torch.cat((ids, ids.new_full((*ids.shape[:-1], 1), self.row_end)), -1).flatten(-2)
        before = (*self.begin, *size, *(() if self.size_end is None else (self.size_end,)))
        lead = ids.shape[:-1]
        parts = (ids.new_tensor(before).expand(*lead, -1), ids, ids.new_tensor(self.end).expand(*lead, -1))
        return torch.cat(parts, -1)

    def read_span(self, ids: Tensor) -> Tensor:
        """ids [n] of one whole image -> codes [N], or [h, w] if rows have an end; a size before them is skipped.

        Raises: ValueError naming what is not where it should be.
        """
        listed: list[int] = self._integers(ids).tolist()
        begin, end = len(self.begin), len(listed) - len(self.end)
        if tuple(listed[:begin]) != self.begin or end < begin or tuple(listed[end:]) != self.end:
            raise ValueError(
                f"{self.name}: expected an image between {list(self.begin)} and {list(self.end)}, got {len(listed)} "
                f"ids {listed[:4]} ... {listed[-4:]}"
            )
        if self.size_end is not None:
            if self.size_end not in listed[begin:end]:
                raise ValueError(f"{self.name}: expected {self.size_end} behind the image's size, got none")
            begin += listed[begin:end].index(self.size_end) + 1
        body = ids[begin:end]
        if self.row_end is None:
            return self.to_codes(body)
        stops = (body == self.row_end).nonzero().flatten()
        width = int(stops[0]) if len(stops) else 0
        if not width or len(body) % (width + 1) or not torch.equal(stops % (width + 1), torch.full_like(stops, width)):
            raise ValueError(
                f"{self.name}: expected rows of equal length, each with {self.row_end} behind it, got {len(body)} ids "
                f"with row ends at {stops.tolist()[:8]}"
            )
        return self.to_codes(body.unflatten(0, (-1, width + 1))[:, :width])

    def find_spans(self, ids: Tensor) -> list[slice]:
        """Where whole images stand in ids [n], in order; without markers, every run of codes is one.

        Raises: ValueError if an image begins and does not end.
        """
        listed: list[int] = self._integers(ids).tolist()
        return self._runs(ids) if not self.begin else self._marked(listed)

    def _marked(self, ids: list[int]) -> list[slice]:
        found, place, begin, end = [], 0, len(self.begin), len(self.end)
        while place <= len(ids) - begin:
            if tuple(ids[place : place + begin]) != self.begin:
                place += 1
                continue
            stop = place + begin
            while tuple(ids[stop : stop + end]) != self.end:
                stop += 1
                if stop + end > len(ids):
                    raise ValueError(
                        f"{self.name}: expected {list(self.end)} behind the image that begins at place {place}, got "
                        f"the end of {len(ids)} ids; more new tokens or a grammar would finish it"
                    )
            found.append(slice(place, stop + end))
            place = stop + end
        return found

    def _runs(self, ids: Tensor) -> list[slice]:
        inside = self.is_code(ids)
        if self.row_end is not None:
            inside |= ids == self.row_end
        edges = torch.nn.functional.pad(inside.to(torch.int8), (1, 1)).diff()
        starts, stops = (edges == 1).nonzero().flatten().tolist(), (edges == -1).nonzero().flatten().tolist()
        return [slice(start, stop) for start, stop in zip(starts, stops, strict=True)]

    def _integers(self, values: Tensor) -> Tensor:
        if values.dtype.is_floating_point or values.dtype.is_complex or values.dtype == torch.bool:
            raise ValueError(f"{self.name}: expected integers, got {values.dtype}")
        return values.to(torch.int64)

    def _lookup(self, ids: Tensor) -> Tensor:
        ids, inverse = self._integers(ids), self._inverse.to(ids.device)
        there = (ids >= 0) & (ids < len(inverse))
        return inverse[ids.where(there, 0)].where(there, -1)

    @cached_property
    def _table(self) -> Tensor:
        return torch.tensor(self.codes, dtype=torch.int64)

    @cached_property
    def _inverse(self) -> Tensor:
        inverse = torch.full((int(self._table.max()) + 1,), -1, dtype=torch.int64)
        inverse[self._table] = torch.arange(len(self))
        return inverse
