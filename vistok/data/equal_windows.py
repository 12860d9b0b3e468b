"""Ids packed into windows of equally many bits by arithmetic coding under a small model (EqualInfoAC of "Training LLMs
over Neurally Compressed Text", arXiv:2404.03626, section 3).

Coder and model start anew at each window, so each decodes alone and holds as many ids as its bits can tell. The coder
is exact integer arithmetic on [0, 2^W), which no machine rounds in another way: a symbol of cumulative frequencies
a..b of T turns [low, low + r) into low + [ceil(r a / T), floor(r b / T)). Numbers across a border belong to no symbol,
and a symbol whose part is empty always has one beside it: that number ends the window, so no count of symbols is
stored and hardly a bit is lost. (Libraries of range coders, constriction among them, write one stream in words of 32
bits: they have no windows whose end a decoder sees.)

The model: an id is Q digits (`vistok.layers.digit_codes`); each is told from the same digit of the id before and the
two digits before it in its own id, absent where they lie in another window. Frequencies are integers, fitted by
counting.

Ids of vq_nano (15.97 bits raw; FSQ's levels as digits), bytes as parts of uint16; the model is fitted on other pictures
than those measured, a sample's last window counted whole. Photographs: 41 to fit, 6 measured (360 px, 17,820 ids);
scenes: 200 and 40 (160 px, 16,000 ids, 400 each). zstd at level 19, for each picture alone and for all in one:

| bits of a window | photographs: ids in a window | bytes | scenes: ids in a window | bytes |
|---|---|---|---|---|
| 16 | 1.2 | 0.839 | 1.1 | 0.921 |
| 32 | 2.9 | 0.688 | 2.4 | 0.843 |
| 64 | 6.2 | 0.641 | 4.9 | 0.812 |
| 128 | 12.9 | 0.621 | 10.0 | 0.802 |
| 256 | 26.1 | 0.612 | 19.9 | 0.805 |
| 1024 | 104 | 0.614 | 75 | 0.856 |
| zstd, each alone / all | | 0.641 / 0.650 | | 0.888 / 0.847 |

From 64 bits on windows take no more bytes than zstd of each picture alone, and up to 256 bits no more than of all in
one, though each decodes alone; windows of 16 bits hold hardly more than an id, and long ones lose what a picture's last
window leaves empty.
"""

import base64
import zlib
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from itertools import accumulate
from math import prod
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vistok.layers.digit_codes import join_digits, split_digits

Words = NDArray[np.uint16]
WORD = 16  # bits
_TOTAL = 1 << 12  # frequencies of a context add up to at most this
_PRIOR = 2.0
_LARGEST_TABLE = 1 << 22  # three digits of 44 codes
# What may be known of a digit's context: all, or less where a window began after the id before, or within this one.
_KNOWN = ((True, True, True), (False, True, True), (False, True, False), (False, False, False))
_LARGEST = 16  # alphabet of a digit where a tokenizer has none of its own


class DigitModel:
    """Frequencies of digits in their contexts; tables[q] [L_q + 1, L_{q-1} + 1, L_{q-2} + 1, L_q] int64, each >= 1.

    The first three axes are the same digit of the id before, the digit before, and that before it; their last place
    means absent, and an axis that has no digit has one place.
    """

    def __init__(self, sizes: Sequence[int], tables: Sequence[Tensor]) -> None:
        """Raises: ValueError for tables of other shapes, frequencies below 1, or too large ones."""
        self.sizes = tuple(sizes)
        self.tables = tuple(tables)
        for digit, table in enumerate(self.tables):
            shape = _shape(self.sizes, digit)
            if tuple(table.shape) != shape or int(table.min()) < 1 or int(table.sum(-1).max()) > _TOTAL:
                raise ValueError(
                    f"digit model: expected frequencies {list(shape)} >= 1 of at most {_TOTAL} together, got "
                    f"{list(table.shape)}"
                )
        if len(self.tables) != len(self.sizes):
            raise ValueError(f"digit model: expected {len(self.sizes)} tables, got {len(self.tables)}")

    @classmethod
    def fit(cls, samples: Iterable[Tensor], sizes: Sequence[int]) -> "DigitModel":
        """Count in samples of ids [n] int64, in their order; what was never seen keeps the least frequency.

        Every digit is counted in its full context and in those at a window's start, so none is unknown.
        Raises: ValueError for ids outside prod(sizes), or sizes that are not positive or make too large tables.
        """
        shapes = [_shape(sizes, digit) for digit in range(len(sizes))]
        if not sizes or min(sizes) < 1 or max(map(prod, shapes)) > _LARGEST_TABLE:
            raise ValueError(
                f"digit model: expected positive alphabets, of at most {_LARGEST_TABLE} frequencies in a table, got "
                f"{list(sizes)}; split ids into more, smaller digits"
            )
        # Not float32, which counts no further than to 2^24.
        counts = [torch.zeros(shape, dtype=torch.int64) for shape in shapes]
        for ids in samples:
            digits = split_digits(ids.to(torch.int64), sizes)
            before = torch.cat([torch.full_like(digits[:1], -1), digits[:-1]])
            for digit, table in enumerate(counts):
                axes = [before[:, digit], *(digits[:, digit - back] for back in (1, 2) if digit >= back)]
                axes += [torch.full_like(axes[0], -1)] * (3 - len(axes))
                for known in _KNOWN:
                    # -1 is the last place, which means absent.
                    places = (axis if use else torch.full_like(axis, -1) for axis, use in zip(axes, known, strict=True))
                    where = tuple(place % size for place, size in zip(places, table.shape[:3], strict=True))
                    table.index_put_((*where, digits[:, digit]), table.new_ones(()), accumulate=True)
        return cls(sizes, [_frequencies(table) for table in counts])

    def record(self) -> dict[str, Any]:
        """What `from_record` reads, for JSON."""
        numbers = np.concatenate([table.numpy().ravel() for table in self.tables]).astype("<u2")
        return {
            "sizes": list(self.sizes),
            "frequencies": base64.b64encode(zlib.compress(numbers.tobytes(), 9)).decode(),
        }

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "DigitModel":
        """Raises: ValueError unless it is what `record` makes."""
        try:
            sizes = [int(size) for size in record["sizes"]]
            content = zlib.decompress(base64.b64decode(record["frequencies"], validate=True))
            numbers = torch.from_numpy(np.frombuffer(content, "<u2").astype(np.int64))
            shapes = [_shape(sizes, digit) for digit in range(len(sizes))]
            parts = numbers.split([prod(shape) for shape in shapes])
            tables = [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]
        except (KeyError, TypeError, ValueError, RuntimeError, zlib.error) as error:
            raise ValueError(
                f"digit model: expected sizes and frequencies as they were written, got {error}"
            ) from error
        return cls(sizes, tables)

    def borders(self, digit: int, same: int, one: int, two: int) -> list[int]:
        """Cumulative frequencies, 0 first and the total last, of a digit behind digits that are -1 where absent."""
        table = self._borders[digit]
        _, ones, twos, _ = self.tables[digit].shape
        return table[(same % (self.sizes[digit] + 1) * ones + one % ones) * twos + two % twos]

    @cached_property
    def _borders(self) -> list[list[list[int]]]:
        rows = ([[0, *accumulate(row)] for row in table.flatten(0, 2).tolist()] for table in self.tables)
        return list(rows)


def encode_windows(ids: Tensor, model: DigitModel, bits: int) -> Words:
    """Ids [n] int64 -> windows [w, bits / 16], big-endian words: the fewest that this model and greed give.

    Raises: ValueError for ids that the model does not know, or bits that are no multiple of 16.
    """
    check_bits(bits)
    digits: list[list[int]] = split_digits(ids.to(torch.int64), model.sizes).tolist()
    values: list[int] = []
    low, width = 0, 1 << bits
    window = _Window(model)
    for row in digits:
        if row[0] < 0:
            raise ValueError("equal windows: expected ids of tokens, got -1; leave padding away")
        for symbol in row:
            borders = window.borders()
            total, first, last = borders[-1], width * borders[symbol], width * borders[symbol + 1]
            begin, end = -(-first // total), last // total
            if end <= begin:
                # One of the symbol's borders lies within a number, which therefore is no symbol's.
                values.append(low + (first // total if first % total else last // total))
                window.reset()
                low, width = 0, 1 << bits
                borders = window.borders()
                total = borders[-1]
                begin, end = -(-width * borders[symbol] // total), width * borders[symbol + 1] // total
            low, width = low + begin, end - begin
            window.push(symbol)
    if digits:
        values.append(low)
    return _words(values, bits)


def decode_windows(words: Words, model: DigitModel, bits: int, count: int) -> Tensor:
    """Windows [w, bits / 16] and how many ids they hold -> ids [count] int64.

    Raises: ValueError if the windows end before that, or go on behind it.
    """
    check_bits(bits)
    values = _values(words, bits)
    found: list[int] = []
    wanted = count * len(model.sizes)
    window = _Window(model)
    used = 0
    while len(found) < wanted and used < len(values):
        window.reset()
        offset, width, used = values[used], 1 << bits, used + 1
        while len(found) < wanted:
            borders = window.borders()
            total = borders[-1]
            # The last symbol that begins at or below the number, in units in which borders are whole.
            symbol = bisect_right(borders, offset * total // width) - 1
            if (offset + 1) * total > width * borders[symbol + 1]:
                break
            begin, end = -(-width * borders[symbol] // total), width * borders[symbol + 1] // total
            offset, width = offset - begin, end - begin
            found.append(symbol)
            window.push(symbol)
    if len(found) < wanted or used < len(values):
        raise ValueError(
            f"equal windows: expected {count} ids in {len(values)} windows of {bits} bits, got {len(found)} of "
            f"{wanted} digits out of {used} windows; give the model and the bits that they were made with"
        )
    digits = torch.tensor(found, dtype=torch.int64).reshape(count, len(model.sizes))
    return join_digits(digits, model.sizes)


def digit_sizes(codes: int) -> tuple[int, ...]:
    """Alphabets of at most 16 for ids below `codes`, where a tokenizer has no digits of its own.

    Raises: ValueError below one code.
    """
    if codes < 1:
        raise ValueError(f"digit sizes: expected at least one code, got {codes}")
    sizes = []
    while codes > _LARGEST:
        sizes.append(_LARGEST)
        codes = -(-codes // _LARGEST)
    return (*sizes, max(codes, 2))


def check_bits(bits: int) -> None:
    """Raise ValueError unless a window may have so many bits."""
    if bits < WORD or bits % WORD:
        raise ValueError(f"equal windows: expected bits that are a multiple of {WORD}, got {bits}")


class _Window:
    """Where in the ids a coder is, and the digits that it may look back to."""

    def __init__(self, model: DigitModel) -> None:
        self._model, self._digits = model, len(model.sizes)
        self._at = 0
        self.reset()

    def reset(self) -> None:
        self._before = [-1] * self._digits  # of the id before, and of this one as far as it goes
        self._one = self._two = -1

    def borders(self) -> list[int]:
        return self._model.borders(self._at, self._before[self._at], self._one, self._two)

    def push(self, symbol: int) -> None:
        self._before[self._at] = symbol
        self._one, self._two = symbol, self._one
        self._at += 1
        if self._at == self._digits:
            self._at, self._one, self._two = 0, -1, -1


def _shape(sizes: Sequence[int], digit: int) -> tuple[int, ...]:
    behind = [sizes[digit - back] + 1 if digit >= back else 1 for back in (1, 2)]
    return (sizes[digit] + 1, *behind, sizes[digit])


def _frequencies(counts: Tensor) -> Tensor:
    """At least 1 each, in every context at most _TOTAL together, from counts [L + 1, ones, twos, L].

    A context that was seldom seen leans on what is known without its farthest digit, as if seen _PRIOR times there.
    """
    told = torch.full((counts.shape[-1],), 1 / counts.shape[-1], dtype=torch.float64)
    for axes in ((0, 1, 2), (1, 2), (2,), ()):
        seen = counts.double().sum(axes, keepdim=True) if axes else counts.double()
        told = (seen + _PRIOR * told) / (seen.sum(-1, keepdim=True) + _PRIOR)
    return 1 + ((_TOTAL - counts.shape[-1]) * told).floor().to(torch.int64)


def _words(values: Sequence[int], bits: int) -> Words:
    content = b"".join(value.to_bytes(bits // 8, "big") for value in values)
    return np.frombuffer(content, ">u2").astype(np.uint16).reshape(len(values), bits // WORD)


def _values(words: Words, bits: int) -> list[int]:
    rows = np.asarray(words)
    if rows.ndim != 2 or rows.shape[1] != bits // WORD:
        raise ValueError(f"equal windows: expected words [w, {bits // WORD}] of {bits} bits, got {list(rows.shape)}")
    return [int.from_bytes(row.astype(">u2").tobytes(), "big") for row in rows]
