"""Check every committed shard of a token store against its commit record and against what tokens may be."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from vistok.data.shard import read_commit, shard_files
from vistok.data.store import read_dataset


def verify_store(path: str | Path) -> dict[str, list[str]]:
    """Problems by shard ("00003"), empty if all committed shards are sound; a shard without a record is no fault.

    Raises: FileNotFoundError, ValueError if `path` is no store.
    """
    root = Path(path)
    dataset = read_dataset(root)
    planned = {f"{shard:05d}" for shard in range(dataset["num_shards"])}
    found = {entry.stem for entry in (root / "commits").glob("*.json")}
    problems = {name: _shard_problems(root, int(name), dataset) for name in sorted(found & planned)}
    problems |= {name: ["has a commit record, but the plan has no such shard"] for name in found - planned}
    return {name: said for name, said in sorted(problems.items()) if said}


def _shard_problems(root: Path, shard: int, dataset: Mapping[str, Any]) -> list[str]:
    try:
        record = read_commit(root, shard, dataset["plan_hash"])
        if record is None:
            return ["commit record of another plan"]
        changed = _changed_files(root, shard, record)
        return changed or _content_problems(root, shard, record, dataset)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError, pa.ArrowException) as error:
        return [f"{type(error).__name__}: {error}"]


def _changed_files(root: Path, shard: int, record: Mapping[str, Any]) -> list[str]:
    problems = []
    for file in shard_files(root, shard)[:2]:
        if not file.is_file():
            problems.append(f"{file.name}: is missing")
            continue
        with open(file, "rb") as data:
            digest = hashlib.file_digest(data, "sha256").hexdigest()
        if digest != record["sha256"][file.name]:
            problems.append(
                f"{file.name}: sha256 is {digest[:16]}, the commit record says {record['sha256'][file.name][:16]}"
            )
    return problems


def _content_problems(root: Path, shard: int, record: Mapping[str, Any], dataset: Mapping[str, Any]) -> list[str]:
    files = shard_files(root, shard)
    rows = pq.read_table(files.rows, columns=["n_tokens"])["n_tokens"].to_pylist()
    with safe_open(files.tensors, framework="pt") as file:
        metadata: dict[str, str] = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no mapping)
    problems = []
    if (len(rows), sum(rows)) != (record["n_samples"], record["n_tokens"]):
        problems.append(
            f"{files.rows.name}: expected {record['n_samples']} samples of {record['n_tokens']} tokens, "
            f"got {len(rows)} of {sum(rows)}"
        )
    if metadata.get("fingerprint") != dataset["fingerprint"]:
        problems.append(f"{files.tensors.name}: made by another tokenizer than the store's")
    columns = {name.removesuffix(".values"): value for name, value in tensors.items() if name.endswith(".values")}
    absent = [name for name in dataset["columns"] if rows and name not in columns]
    problems += [f"{files.tensors.name}: column {name} is missing" for name in absent]
    for name, values in columns.items():
        offsets = tensors.get(f"{metadata.get(f'{name}.offsets_of', name)}.offsets")
        said = _offset_problem(offsets, rows, len(values)) or _value_problem(name, values, metadata)
        problems += [f"{files.tensors.name}: {name}: {said}"] if said else []
    return problems


def _offset_problem(offsets: Tensor | None, rows: list[int], total: int) -> str | None:
    if offsets is None:
        return "has no offsets"
    steps = offsets.diff()
    if len(offsets) != len(rows) + 1 or int(offsets[0]) != 0 or bool((steps < 0).any()) or int(offsets[-1]) != total:
        return f"expected {len(rows) + 1} offsets rising from 0 to {total}"
    return None if steps.tolist() == rows else "offsets disagree with n_tokens of the parquet file"


def _value_problem(name: str, values: Tensor, metadata: Mapping[str, str]) -> str | None:
    if values.is_floating_point():
        return None if bool(torch.isfinite(values).all()) else "holds NaN or infinity"
    sizes = json.loads(metadata["codebook_sizes"])
    if name != "indices" or not sizes or not values.numel():
        return None
    ids = values.to(torch.int64).reshape(len(values), -1)
    if ids.shape[1] != len(sizes):
        return f"expected {len(sizes)} codebooks, got {ids.shape[1]}"
    if bool(((ids < 0) | (ids >= torch.tensor(sizes))).any()):
        return f"expected ids below {sizes}, got {int(ids.min())}..{int(ids.max())}"
    return None
