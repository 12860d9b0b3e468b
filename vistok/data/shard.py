"""One shard of a token store on disk: ragged columns in a safetensors file, rows in a parquet file, a commit record.

Every file is written beside its place and moved there, the commit record last: a shard without one does not exist.
Same samples give the same bytes. n tokens of a sample, T tokens of a shard, S samples of a shard.
"""

import hashlib
import io
import json
import os
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from vistok.data.local_write import LocalWrites
from vistok.data.local_write import locked as locked  # said here too: where others take it from
from vistok.data.local_write import write_atomic as write_atomic
from vistok.data.records import commit_record, shard_names
from vistok.rows import grid_coords
from vistok.tokens import TokenSpec, TokenTensor

FORMAT_VERSION = 1
# How the fields of a TokenTensor other than indices and embeds are stored; those two follow the plan.
_STORED_AS = {"coords": "int16", "scores": "float16", "source": "int32", "sizes": "float32"}
_TENSOR_CODES = {
    torch.uint16: "U16",
    torch.int16: "I16",
    torch.int32: "I32",
    torch.int64: "I64",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float32: "F32",
}
_STATIC_SPEC = ("dim", "codebook_sizes", "patch", "prefix", "order", "tile")
# digest: the first 32 hex digits of sha256 of the picture's file content.
ROW_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("source", pa.string()),
        ("source_offset", pa.int64()),
        ("digest", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("crop", pa.list_(pa.int32())),
        ("image_size", pa.list_(pa.int32())),
        ("grid", pa.list_(pa.int32())),
        ("n_tokens", pa.int64()),
        ("caption", pa.string()),
    ]
)


class ShardFiles(NamedTuple):
    """Where the parts of one shard lie; `errors` exists only if a sample failed."""

    tensors: Path
    rows: Path
    errors: Path
    commit: Path


class Writes(Protocol):
    """A store that a shard is written into, see `vistok.data.store_files`."""

    def put(self, path: str, content: bytes, attempt: int = 1) -> None: ...

    def remove(self, path: str) -> None: ...

    def next_attempt(self, paths: Sequence[str]) -> int: ...


@dataclass(frozen=True)
class Sample:
    """One encoded picture: `row` for the parquet file (what is not in spec and columns), columns name -> [n, ...]."""

    row: dict[str, Any]
    spec: TokenSpec
    columns: dict[str, Tensor]

    @property
    def n_tokens(self) -> int:
        """Tokens of this picture."""
        return len(next(iter(self.columns.values())))


def shard_files(root: Path, shard: int) -> ShardFiles:
    """Paths of shard number `shard` in the store at `root`."""
    return ShardFiles(*(root / name for name in shard_names(shard)))


def read_commit(root: Path, shard: int, plan_hash: str) -> dict[str, Any] | None:
    """The commit record of a shard, None if there is none or another plan's.

    Raises: ValueError naming the file if it is not a record.
    """
    path = shard_files(root, shard).commit
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    return commit_record(content, str(path), plan_hash)


def stored_columns(tokens: TokenTensor, primary: Mapping[str, str]) -> dict[str, Tensor]:
    """The fields of a batch of one without padding, in the dtypes of the store.

    primary: dtype by name for indices and embeds; one that is not named is left out.
    Raises: ValueError naming the field that is absent, not finite or does not fit its dtype.
    """
    fields = {name: value[0] for name, value in tokens.trim().token_tensors().items()}
    missing = [name for name in primary if name not in fields]
    if missing:
        raise ValueError(f"{tokens.spec.name}: expected tokens with {', '.join(missing)}, got {', '.join(fields)}")
    dtypes = {**primary, **_STORED_AS}
    return {name: _cast(name, fields[name], dtypes[name]) for name in dtypes if name in fields}


def write_shard(
    root: Path,
    shard: int,
    samples: Sequence[Sample],
    errors: Sequence[Mapping[str, str]],
    *,
    header: Mapping[str, str],
    plan_hash: str,
    schema: pa.Schema = ROW_SCHEMA,
    seconds: float = 0.0,
) -> dict[str, Any]:
    """Write a shard's files into a folder, then its commit record, which is returned; arguments as `write_data`."""
    place = LocalWrites(root)
    record = write_data(
        place, shard, samples, errors, header=header, plan_hash=plan_hash, schema=schema, seconds=seconds
    )
    write_commit(place, record)
    return record


def write_data(
    place: Writes,
    shard: int,
    samples: Sequence[Sample],
    errors: Sequence[Mapping[str, str]],
    *,
    header: Mapping[str, str],
    plan_hash: str,
    schema: pa.Schema = ROW_SCHEMA,
    seconds: float = 0.0,
) -> dict[str, Any]:
    """Write a shard's files but its commit record, which is returned: before that is written, the shard is not there.

    header: strings for the safetensors header (tokenizer, fingerprint). schema: ROW_SCHEMA and the user's own columns.
    Raises: ValueError if the samples of the shard differ in columns or in a static field of their spec; OSError naming
    the file if it cannot be written.
    """
    names = shard_names(shard)
    attempt = place.next_attempt(names)
    data = {
        names.tensors: _tensor_file(samples, {"format": "vistok-shard", "version": str(FORMAT_VERSION), **header}),
        names.rows: _row_file(samples, schema),
    }
    for path, content in data.items():
        place.put(path, content, attempt)
    write_errors(place, shard, errors, attempt)
    return {
        "shard": shard,
        "plan_hash": plan_hash,
        "n_samples": len(samples),
        "n_tokens": sum(sample.n_tokens for sample in samples),
        "n_errors": len(errors),
        "bytes": sum(len(content) for content in data.values()),
        "sha256": {path.split("/")[-1]: hashlib.sha256(content).hexdigest() for path, content in data.items()},
        "attempt": attempt,
        "worker": f"{socket.gethostname()}:{os.getpid()}",
        "seconds": round(seconds, 3),
    }


def write_commit(place: Writes, record: Mapping[str, Any]) -> None:
    """Write a commit record: from then on the shard is part of the store. Raises: OSError naming the file."""
    content = (json.dumps(record, indent=2) + "\n").encode()
    place.put(shard_names(record["shard"]).commit, content, record["attempt"])


def write_errors(place: Writes, shard: int, errors: Sequence[Mapping[str, str]], attempt: int = 1) -> None:
    """Write errors/NNNNN.jsonl, or remove it if there are none: an attempt that was cut off may have met some."""
    path = shard_names(shard).errors
    if errors:
        place.put(path, "".join(json.dumps(error) + "\n" for error in errors).encode(), attempt)
    else:
        place.remove(path)


def spec_from_header(metadata: Mapping[str, str]) -> TokenSpec:
    """The TokenSpec that the samples of a shard share, without grid and image size."""
    static = {name: json.loads(metadata[name]) for name in _STATIC_SPEC if name in metadata}
    static = {name: tuple(value) if isinstance(value, list) else value for name, value in static.items()}
    return TokenSpec(metadata["tokenizer"], **static)


def _cast(name: str, value: Tensor, dtype: str) -> Tensor:
    cast = value.detach().cpu().to(getattr(torch, dtype))
    if value.is_floating_point():
        if not bool(torch.isfinite(cast.float()).all()):
            raise ValueError(
                f"{name}: expected finite values that fit {dtype}, got NaN, infinity or more than it holds"
            )
    elif not torch.equal(cast.to(torch.int64), value.cpu().to(torch.int64)):
        raise ValueError(f"{name}: expected values that fit {dtype}, got {int(value.min())}..{int(value.max())}")
    return cast


def _tensor_file(samples: Sequence[Sample], metadata: dict[str, str]) -> bytes:
    if not samples:
        return _safetensors({}, metadata)
    first = samples[0]
    names = [*first.columns]
    for sample in samples:
        if [*sample.columns] != names or _static(sample.spec) != _static(first.spec):
            raise ValueError(
                f"{sample.row['key']}: expected columns {names} and {_static(first.spec)} as in the rest of its shard, "
                f"got {[*sample.columns]} and {_static(sample.spec)}"
            )
    if "coords" in names and all(_is_whole_grid(sample) for sample in samples):
        names.remove("coords")
        metadata = {**metadata, "coords": "grid"}
    lead = names[0]
    tensors = {f"{name}.values": torch.cat([sample.columns[name] for sample in samples]) for name in names}
    tensors[f"{lead}.offsets"] = torch.tensor([0, *(sample.n_tokens for sample in samples)]).cumsum(0)
    shared = {f"{name}.offsets_of": lead for name in names[1:]}
    return _safetensors(tensors, metadata | _static(first.spec) | shared)


def _static(spec: TokenSpec) -> dict[str, str]:
    return {name: json.dumps(getattr(spec, name)) for name in _STATIC_SPEC}


def _is_whole_grid(sample: Sample) -> bool:
    if len(sample.spec.grid) != 2:
        return False
    return torch.equal(sample.columns["coords"].to(torch.int32), grid_coords(*sample.spec.grid)[0])


def _safetensors(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    # Not safetensors.torch.save: it writes the metadata in random order, and a shard must be the same bytes every time.
    header: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))}
    # Wide elements first, so that every tensor starts at a multiple of its element size.
    ordered = sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0]))
    parts: list[bytes] = []
    end = 0
    for name, tensor in ordered:
        start, end = end, end + tensor.numel() * tensor.element_size()
        code = _TENSOR_CODES[tensor.dtype]
        header[name] = {"dtype": code, "shape": list(tensor.shape), "data_offsets": [start, end]}
        parts.append(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return b"".join([len(text).to_bytes(8, "little"), text, *parts])


def _row_file(samples: Sequence[Sample], schema: pa.Schema) -> bytes:
    rows = [
        {
            **sample.row,
            "image_size": list(sample.spec.image_size),
            "grid": list(sample.spec.grid),
            "n_tokens": sample.n_tokens,
        }
        for sample in samples
    ]
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), buffer, compression="zstd")
    return buffer.getvalue()
