"""Check every committed shard of a token store against its commit record and against what tokens may be."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from vistok.data.records import shard_names
from vistok.data.shard import FORMAT_VERSION, ROW_SCHEMA
from vistok.data.shard_content import ShardContent, changed_files, read_errors, record_problems, repeated_keys
from vistok.data.shard_header import REMEDY
from vistok.data.store_files import StoreFiles, open_files, read_commits, read_dataset

_DIGEST = r"^[0-9a-f]{32}$"
_OPTIONAL = ("digest",)  # stores that were made before there was one
_SHOWN = 5


def verify_store(path: str | Path) -> dict[str, list[str]]:
    """Problems by shard ("00003"), empty if all committed shards are sound; a shard without a record is no fault.

    Whatever is in the files of a shard, it is told, not raised. What a commit record says of the run that wrote it
    (attempt, worker, seconds) is checked for its kind only.
    Raises: FileNotFoundError, ValueError if `path` is no store.
    """
    files = open_files(path)
    dataset = read_dataset(files)
    problems: dict[str, list[str]] = {}
    keys: dict[str, pa.ChunkedArray] = {}
    schemas: dict[str, pa.Schema] = {}
    recorded = [listed.name for listed in files.listed("commits") if listed.name.endswith(".json")]
    for name in sorted(name.removesuffix(".json") for name in recorded):
        said = problems[name] = []
        if not _is_planned(name, dataset["num_shards"]):
            said.append(f"{name}.json: has a commit record, but the plan has no such shard")
            continue
        try:
            said += _shard_problems(files, int(name), dataset)
            if not said:
                rows = files.rows(shard_names(int(name)).rows)
                keys[name], schemas[name] = rows["key"], rows.schema.remove_metadata()
        except Exception as error:  # no content of a file may keep the other shards from being checked
            said.append(_told(files.name, error))
    for name, found in _repeated(keys).items():
        problems[name] += found
    for name, schema in schemas.items():
        first = next(iter(schemas))
        if not schema.equals(schemas[first]):
            problems[name].append(f"{name}.parquet: has other columns than {first}.parquet")
    return {name: said for name, said in problems.items() if said}


def _is_planned(name: str, num_shards: int) -> bool:
    return re.fullmatch(r"[0-9]{5,}", name) is not None and int(name) < num_shards and f"{int(name):05d}" == name


def _told(place: str, error: Exception) -> str:
    text = str(error).replace(f"{place}/", "").removesuffix(f"; {REMEDY}")
    return text if isinstance(error, ValueError | OSError) else f"{type(error).__name__}: {text}"


def _shard_problems(files: StoreFiles, shard: int, dataset: Mapping[str, Any]) -> list[str]:
    names = shard_names(shard)
    file = names.commit.split("/")[-1]
    record = read_commits(files, dataset["plan_hash"], [shard]).get(shard)
    if record is None:
        return [f"{file}: commit record of another plan"]
    wrong = [*record_problems(record, shard), *_writer_problems(record)]
    if wrong:
        return [f"{file}: {problem}" for problem in wrong]
    if changed := changed_files(files, shard, record):
        return changed
    said = _error_problems(files, names.errors, record["n_errors"])
    content = ShardContent(files, shard, record["n_samples"])
    said += _row_problems(content, record, dataset)
    return said or _token_problems(content, names.tensors.split("/")[-1], dataset)


def _writer_problems(record: Mapping[str, Any]) -> Iterator[str]:
    kinds: dict[str, tuple[type, ...]] = {"attempt": (int,), "worker": (str,), "seconds": (int, float)}
    for name, kind in kinds.items():
        if type(record.get(name)) not in kind:
            yield f"expected {name} ({' or '.join(one.__name__ for one in kind)}), got {record.get(name)!r:.80}"


def _error_problems(files: StoreFiles, path: str, expected: int) -> list[str]:
    name = path.split("/")[-1]
    [content] = files.contents([path])
    if content is None:
        return [f"{name}: is missing, the commit record says {expected} errors"] if expected else []
    found = len(read_errors(content, f"{files.name}/{path}"))
    return [] if found == expected else [f"{name}: holds {found} errors, the commit record says {expected}"]


def _row_problems(content: ShardContent, record: Mapping[str, Any], dataset: Mapping[str, Any]) -> list[str]:
    rows = content.rows
    name = content.rows_file.split("/")[-1]
    kinds = {field.name: field.type for field in rows.schema}
    expected = {field.name: field.type for field in ROW_SCHEMA if field.name in kinds or field.name not in _OPTIONAL}
    said = [
        f"{name}: column {column}: expected {kind}, got {kinds.get(column, 'none')}"
        for column, kind in expected.items()
        if kinds.get(column) != kind
    ]
    # Names only: parquet calls the items of a list otherwise than the type that was given.
    own = [column for column in kinds if column not in expected]
    if own != [*dataset.get("fields", own)]:
        said.append(f"{name}: expected the user's columns {[*dataset['fields']]}, got {own}")
    return said or [f"{name}: {problem}" for problem in _row_value_problems(rows, content.lengths, record["n_tokens"])]


def _row_value_problems(rows: pa.Table, lengths: list[int], n_tokens: int) -> Iterator[str]:
    if sum(lengths) != n_tokens:
        yield f"expected {n_tokens} tokens as in the commit record, got {sum(lengths)}"
    if rows["n_tokens"].to_pylist() != lengths:
        yield "n_tokens disagrees with the offsets in the safetensors file"
    if rows["key"].null_count or pc.any(pc.equal(rows["key"], "")).as_py():
        yield "expected a key in every row, got none in some"
    repeated = repeated_keys([rows["key"]])
    if len(repeated):
        yield f"expected every key once, got several times: {_some(repeated.to_pylist())}"
    if "digest" in rows.column_names and pc.all(pc.match_substring_regex(rows["digest"], _DIGEST)).as_py() is False:
        yield "expected digests of 32 hexadecimal digits"


def _token_problems(content: ShardContent, file: str, dataset: Mapping[str, Any]) -> list[str]:
    metadata = content.metadata
    said = []
    if (metadata.get("format"), metadata.get("version")) != ("vistok-shard", str(FORMAT_VERSION)):
        said.append(f"is no shard of version {FORMAT_VERSION}")
    if metadata.get("fingerprint") != dataset["fingerprint"]:
        said.append(
            f"made by another tokenizer, {metadata.get('tokenizer')} {str(metadata.get('fingerprint'))[:16]}, "
            f"than the store's, {dataset['tokenizer']} {dataset['fingerprint'][:16]}"
        )
    for name, dtype in dataset["columns"].items():
        if content.samples and not content.is_stored(name):
            said.append(f"column {name} is missing")
        elif content.samples and content.empty(name).dtype != getattr(torch, dtype, None):
            said.append(f"{name}: expected {dtype}, got {content.empty(name).dtype}")
    stored = {name: content.column(name) for name in content.names if content.is_stored(name)}
    for name, values in stored.items():
        said += [f"{name}: {problem}" for problem in _value_problems(name, values, content)]
    if content.samples:
        _ = content.specs
    return [f"{file}: {problem}" for problem in said]


def _value_problems(name: str, values: Tensor, content: ShardContent) -> Iterator[str]:
    spec = content.header_spec
    if values.is_floating_point() and not bool(torch.isfinite(values).all()):
        yield "holds NaN or infinity"
    if name == "embeds" and spec.dim and values.shape[1] != spec.dim:
        yield f"expected width {spec.dim}, got {values.shape[1]}"
    if name == "indices" and spec.codebook_sizes:
        yield from _id_problems(values, spec.codebook_sizes)


def _id_problems(values: Tensor, sizes: tuple[int, ...]) -> Iterator[str]:
    books = 1 if values.ndim == 1 else values.shape[1]
    if books != len(sizes):
        yield f"expected {len(sizes)} codebooks, got {books}"
    elif values.numel():
        ids = values.reshape(-1, books).numpy()  # torch has no order of uint16
        if ids.min() < 0 or bool((ids.max(axis=0).astype(np.int64) >= np.array(sizes)).any()):
            yield f"expected ids below {list(sizes)}, got {ids.min()}..{ids.max()}"


def _repeated(keys: Mapping[str, pa.ChunkedArray]) -> dict[str, list[str]]:
    """Keys that an earlier shard has already, by shard."""
    repeated = repeated_keys([*keys.values()])
    found: dict[str, list[str]] = {}
    if not len(repeated):
        return found
    first: dict[str, str] = {}
    for name, column in keys.items():
        mine = column.filter(pc.is_in(column.cast(pa.large_string()), repeated)).to_pylist()
        again = [key for key in mine if first.setdefault(key, name) != name]
        if again:
            owners = ", ".join(sorted({f"{first[key]}.parquet" for key in again}))
            found[name] = [f"{name}.parquet: keys that are also in {owners}: {_some(again)}"]
    return found


def _some(keys: list[str]) -> str:
    more = f" and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else ""
    return ", ".join(map(repr, keys[:_SHOWN])) + more
