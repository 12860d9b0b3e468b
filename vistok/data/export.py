"""A token store in the formats of other libraries: Parquet, a Hugging Face data set on disk, WebDataset tars.

Shard by shard, so memory holds one at a time; written under a temporary name and moved, so a folder that is there is
whole.
"""

import base64
import io
import json
import os
import shutil
import tarfile
from collections.abc import Callable, Iterator, Mapping
from datetime import date, time
from pathlib import Path
from typing import Any, Literal, get_args
from urllib.parse import quote

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vistok.data.arrow_table import as_numpy_dtype, column_kinds, to_table
from vistok.data.claim import folder_apart
from vistok.data.shard_content import CommittedStore, open_committed

Format = Literal["parquet", "datasets", "webdataset"]
_ROW_GROUP = 1000  # samples
# WebDataset takes the name of a member up to its first dot for the key.
_TAR_NAMES = {"indices": "ids"}


def export_store(path: str | Path, out: str | Path, to: Format, *, allow_incomplete: bool = False) -> int:
    """Write the store at `path` into the new folder `out`; the number of samples.

    to: "parquet" (one file per shard), "datasets" (for `datasets.load_from_disk`) or "webdataset" (one tar per shard).
    allow_incomplete: export the committed shards of a store that lacks some. Raises: FileNotFoundError, ValueError if
    `path` is no store, is incomplete, damaged or empty; FileExistsError if `out` exists; ImportError without the
    library.
    """
    if to not in _WRITERS:
        raise ValueError(f"export: expected a format out of {', '.join(get_args(Format))}, got {to!r}")
    store = open_committed(path)
    target = folder_apart(out, [store.root])
    store.check_complete(allow_incomplete)
    if not store.commits:
        raise ValueError(f"{store.root}: expected a committed shard to export, got none")
    if target.exists() or target.is_symlink():
        raise FileExistsError(f"{target}: exists; delete it or choose another folder")
    partial = target.with_name(f"{target.name}.tmp.{os.getpid()}")
    partial.mkdir(parents=True)
    try:
        _WRITERS[to](store, partial)
        _flush(partial)
        partial.rename(target)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return sum(record["n_samples"] for record in store.commits.values())


def tar_key(key: str) -> str:
    """A sample's key as the name of a tar member: no dots, no empty parts, and another one for every key."""
    safe = "/ " if all(key.split("/")) else " "
    return quote(key, safe=safe).replace(".", "%2E")


def _tables(store: CommittedStore) -> Iterator[tuple[str, pa.Table]]:
    """Name for a file and contents of every shard, all of one schema, which says what the tokens are."""
    kinds = column_kinds(store.shard(shard) for shard in store.commits)
    spec = next((content.metadata for content in map(store.shard, store.commits) if content.names), {})
    about = {"vistok": json.dumps({**store.dataset, "header": dict(spec)})}
    for number, shard in enumerate(store.commits):
        store.check_bytes(shard)
        table = to_table(store.shard(shard), kinds)
        yield f"data-{number:05d}-of-{len(store.commits):05d}", table.replace_schema_metadata(about)


def _write_parquet(store: CommittedStore, out: Path) -> None:
    for name, table in _tables(store):
        pq.write_table(table, out / f"{name}.parquet", compression="zstd", row_group_size=_ROW_GROUP)


def _write_datasets(store: CommittedStore, out: Path) -> None:
    try:
        from datasets import Dataset, concatenate_datasets
    except ImportError as error:
        raise ImportError("export --to datasets needs the library: pip install 'vistok[datasets]'") from error

    # Mapped where they lie: anything else that makes a data set leaves a copy in the library's cache.
    staged = out / "staged"
    staged.mkdir()
    for name, table in _tables(store):
        with pa.OSFile(str(staged / f"{name}.arrow"), "wb") as file, pa.ipc.new_stream(file, table.schema) as stream:
            stream.write_table(table, max_chunksize=_ROW_GROUP)
    parts = [Dataset.from_file(str(file)) for file in sorted(staged.iterdir())]
    whole = concatenate_datasets(parts)
    whole.save_to_disk(out, num_shards=max(1, min(len(parts), len(whole))))
    del parts, whole
    shutil.rmtree(staged)


def _write_webdataset(store: CommittedStore, out: Path) -> None:
    columns = column_kinds(store.shard(shard) for shard in store.commits)
    for number, shard in enumerate(store.commits):
        store.check_bytes(shard)
        content = store.shard(shard)
        with tarfile.open(out / f"data-{number:05d}.tar", "w", format=tarfile.PAX_FORMAT) as tar:
            for index in range(len(content.rows)):
                row = content.rows.slice(index, 1).to_pylist()[0]
                name = tar_key(row["key"])
                tokens = content.tokens(index)
                for column, values in ((column, tokens[column]) for column in columns if column in tokens):
                    data = io.BytesIO()
                    np.save(data, as_numpy_dtype(values).numpy(), allow_pickle=False)
                    _add(tar, f"{name}.{_TAR_NAMES.get(column, column)}.npy", data.getvalue())
                _add(tar, f"{name}.json", json.dumps(row, default=_plain, ensure_ascii=False).encode())


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)  # with its defaults, time and owner 0, the same samples give the same bytes
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, date | time):
        return value.isoformat()
    if isinstance(value, Mapping):
        return dict(value)
    return str(value)


def _flush(folder: Path) -> None:
    for file in folder.rglob("*"):
        if file.is_file():
            with open(file, "rb") as data:
                os.fsync(data.fileno())


_WRITERS: dict[str, Callable[[CommittedStore, Path], None]] = {
    "parquet": _write_parquet,
    "datasets": _write_datasets,
    "webdataset": _write_webdataset,
}
