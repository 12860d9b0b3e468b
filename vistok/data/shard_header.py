"""The header of a shard's safetensors file, read strictly: what it claims is checked against the file before any use.

Format: 8 bytes little-endian length of a JSON object, the object (name -> dtype, shape, data_offsets), the data.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from typing import Any, Protocol

import numpy as np

from vistok.data.shard import spec_from_header
from vistok.token_checks import ORDERS
from vistok.tokens import TokenSpec

MAX_HEADER = 100_000_000  # the limit of the safetensors library
_HUGE = 1 << 48  # what numpy can still multiply
REMEDY = "run `vistok store verify`"
# numpy has no bfloat16: its bits are read as uint16.
_DTYPES = {"U16": "<u2", "I16": "<i2", "I32": "<i4", "I64": "<i8", "F16": "<f2", "BF16": "<u2", "F32": "<f4"}
_INTEGERS, _FLOATS = ("U16", "I16", "I32", "I64"), ("F16", "BF16", "F32")
# Axes and dtypes that a column may have.
_COLUMNS = {
    "indices": ((1, 2), _INTEGERS),
    "embeds": ((2,), _FLOATS),
    "coords": ((2,), _INTEGERS),
    "scores": ((1,), _FLOATS),
    "source": ((1,), _INTEGERS),
    "sizes": ((1,), _FLOATS),
}


class ByteFile(Protocol):
    """A file whose size is known and of which parts can be read; `name` is what errors call it."""

    name: str
    size: int

    def read(self, start: int, stop: int) -> bytes: ...


@dataclass(frozen=True)
class Extent:
    """One tensor of a file: bytes start..stop of the whole file; `code` is safetensors' name of its dtype."""

    code: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    start: int
    stop: int

    @property
    def row_bytes(self) -> int:
        """Bytes of one entry of the first axis."""
        return prod(self.shape[1:]) * self.dtype.itemsize


@dataclass(frozen=True)
class ShardHeader:
    """metadata: strings; tensors: extents by name; columns: by name, the extents of its values and of its offsets."""

    metadata: dict[str, str]
    tensors: dict[str, Extent]
    columns: dict[str, tuple[Extent, Extent]]
    spec: TokenSpec

    @property
    def whole_grids(self) -> bool:
        """Whether the coords of every sample are those of its whole grid, and therefore not stored."""
        return self.metadata.get("coords") == "grid"


def read_header(file: ByteFile) -> ShardHeader:
    """The header of a shard. Raises: ValueError naming the file if anything in it does not hold."""
    if file.size < 8:
        raise _broken(file, "at least 8 bytes", f"{file.size}")
    length = int.from_bytes(file.read(0, 8), "little")
    if length > min(MAX_HEADER, file.size - 8):
        raise _broken(file, f"a header that fits into {file.size} bytes", f"a header length of {length}")
    try:
        header = json.loads(file.read(8, 8 + length), object_pairs_hook=_without_repeats)
    except (ValueError, RecursionError) as error:
        raise _broken(file, "a header in JSON", str(error)) from error
    if not isinstance(header, dict):
        raise _broken(file, "a JSON object", type(header).__name__)
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _broken(file, "__metadata__ of strings", repr(metadata)[:80])
    tensors = {name: _extent(file, name, entry, 8 + length) for name, entry in header.items()}
    _check_layout(file, tensors.values(), 8 + length)
    return ShardHeader(metadata, tensors, _columns(file, metadata, tensors), _spec(file, metadata))


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("the same name twice")
    return found


def _extent(file: ByteFile, name: str, entry: Any, data: int) -> Extent:
    entry = entry if isinstance(entry, dict) else {}
    code, shape, span = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if not isinstance(code, str) or code not in _DTYPES:
        raise _broken(file, f"{name!r} with a dtype out of {', '.join(_DTYPES)}", repr(code))
    if not _are_counts(shape) or not _are_counts(span) or len(span) != 2:
        raise _broken(
            file, f"{name!r} with a shape and two data_offsets, all in 0..2**48", f"{shape!r:.80} and {span!r:.80}"
        )
    dtype = np.dtype(_DTYPES[code])
    if span[1] - span[0] != prod(shape) * dtype.itemsize or data + span[1] > file.size:
        raise _broken(
            file, f"{name!r} ({code} {shape!r:.80}) within {file.size - data} bytes of data", f"bytes {span!r:.80}"
        )
    return Extent(code, dtype, tuple(shape), data + span[0], data + span[1])


def _are_counts(value: Any) -> bool:
    return isinstance(value, list) and all(type(number) is int and 0 <= number < _HUGE for number in value)


def _check_layout(file: ByteFile, extents: Iterable[Extent], data: int) -> None:
    end = data
    for extent in sorted(extents, key=lambda extent: (extent.start, extent.stop)):
        if extent.start != end:
            raise _broken(file, f"a tensor that begins at byte {end}", f"one at {extent.start} (overlap or hole)")
        end = extent.stop
    if end != file.size:
        raise _broken(file, f"{end} bytes", f"{file.size}")


def _columns(file: ByteFile, metadata: dict[str, str], tensors: dict[str, Extent]) -> dict[str, tuple[Extent, Extent]]:
    found = {}
    for column in (name.removesuffix(".values") for name in tensors if name.endswith(".values")):
        if column not in _COLUMNS:
            raise _broken(file, f"columns out of {', '.join(_COLUMNS)}", repr(column))
        values, (ranks, codes) = tensors[f"{column}.values"], _COLUMNS[column]
        if values.code not in codes or len(values.shape) not in ranks:
            raise _broken(
                file,
                f"{column} with {' or '.join(map(str, ranks))} axes of {', '.join(codes)}",
                f"{values.code} {list(values.shape)}",
            )
        offsets = tensors.get(f"{metadata.get(f'{column}.offsets_of', column)}.offsets")
        if offsets is None or offsets.code != "I64" or len(offsets.shape) != 1:
            raise _broken(file, f"offsets of {column}, I64 [samples + 1]", "none" if offsets is None else str(offsets))
        found[column] = (values, offsets)
    return found


def _spec(file: ByteFile, metadata: dict[str, str]) -> TokenSpec:
    try:
        spec = spec_from_header(metadata)
    except (KeyError, ValueError, RecursionError) as error:
        raise _broken(file, "metadata that describes the tokens", f"{type(error).__name__} {error}") from error
    numbers = [spec.dim, spec.patch, spec.prefix, spec.tile]
    numbers += spec.codebook_sizes if isinstance(spec.codebook_sizes, tuple) else [None]
    if not all(type(number) is int and number >= 0 for number in numbers) or spec.order not in ORDERS:
        raise _broken(file, "metadata that describes the tokens", str(spec))
    return spec


def _broken(file: ByteFile, expected: str, got: str) -> ValueError:
    return ValueError(f"{file.name}: expected {expected}, got {got}; {REMEDY}")
