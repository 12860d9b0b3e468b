"""Reading tokens: a token store against Arrow IPC, Parquet and WebDataset that hold the same ragged samples.

Every candidate delivers arrays of uint16 that the caller may read; what each of them delivers is compared first.
Random reads find all files open. In order means: from opening the files to the highest id of all tokens.
"""

import json
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from vistok.bench.timing import Candidates, Timing, in_turn
from vistok.data.shard import FORMAT_VERSION, Sample, write_shard
from vistok.data.store import TokenStore
from vistok.tokens import TokenSpec

Array = np.ndarray[Any, np.dtype[Any]]
_CODES = 4096
_WORDS = ("grey", "cat", "on", "a", "wall", "in", "the", "sun", "red", "boat")
_ARROW_ROWS, _PARQUET_ROWS = 512, 1000
_TAR_PART = 10  # one in so many shards is read from tar files, which are orders slower


@dataclass(frozen=True)
class Samples:
    """One shard: ids [T] uint16, offsets [S + 1] int64, rows of the same samples."""

    ids: Array
    offsets: Array
    rows: list[dict[str, Any]]


def run(rounds: int = 7) -> Iterator[tuple[str, list[Timing]]]:
    """Yield a case and its timings, vistok first: 200,000 samples of 32 to 256 tokens in 20 shards."""
    yield from run_with(rounds, shards=20, samples=10_000, reads=1_000)


def run_with(rounds: int, *, shards: int, samples: int, reads: int) -> Iterator[tuple[str, list[Timing]]]:
    """As `run`, with so many shards of so many samples, of which `reads` are read at random.

    Raises: ImportError without webdataset; AssertionError if two formats deliver different tokens.
    """
    rng = np.random.default_rng(0)
    with TemporaryDirectory(prefix="vistok-bench-") as folder:
        root = Path(folder)
        _write(root, [_samples(rng, shard, samples) for shard in range(shards)])
        wanted = rng.integers(0, shards * samples, reads).tolist()
        part = max(1, shards // _TAR_PART)
        whole = {"vistok": _store_arrays, "Arrow IPC": _arrow_arrays, "Parquet": _parquet_arrays}
        yield f"{reads} random reads of one sample", in_turn(_one_by_one(root, shards, wanted), rounds)
        yield f"{reads} random reads of one sample, as tensors", in_turn(_as_tensors(root, shards, wanted), rounds)
        yield f"{reads} random samples at once", in_turn(_together(root, shards, wanted), rounds)
        yield f"{shards} shards in order", in_turn(_in_order(whole, root, shards), rounds)
        tar = {"vistok": _store_arrays, "WebDataset": _tar_arrays}
        yield f"{part} shards in order", in_turn(_in_order(tar, root, part), rounds)


def _samples(rng: np.random.Generator, shard: int, count: int) -> Samples:
    lengths = rng.integers(1, 9, count) * 32
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    ids = (_CODES * rng.random(int(offsets[-1])) ** 3).astype(np.uint16)  # low ids are common, as in a real codebook
    captions = rng.integers(0, len(_WORDS), (count, 10))
    rows = [
        {
            "key": f"{shard:02d}/{sample:06d}.jpg",
            "source": f"{shard:02d}/{sample:06d}.jpg",
            "width": 256,
            "height": 256,
            "caption": " ".join(_WORDS[word] for word in words),
        }
        for sample, words in enumerate(captions.tolist())
    ]
    return Samples(ids, offsets, rows)


def _write(root: Path, shards: list[Samples]) -> None:
    dataset = {"format": "vistok-store", "version": FORMAT_VERSION, "plan_hash": "bench", "num_shards": len(shards)}
    dataset |= {"tokenizer": "bench", "fingerprint": "bench", "columns": {"indices": "uint16"}}
    (root / "dataset.json").write_text(json.dumps(dataset))
    spec = TokenSpec("bench", codebook_sizes=(_CODES,), order="1d")
    for shard, samples in enumerate(shards):
        whole = torch.from_numpy(samples.ids)
        pieces = whole.split(np.diff(samples.offsets).tolist())
        items = [Sample(row, spec, {"indices": ids}) for row, ids in zip(samples.rows, pieces, strict=True)]
        write_shard(root, shard, items, [], header={"tokenizer": "bench", "fingerprint": "bench"}, plan_hash="bench")
        table = _table(samples)
        with pa.OSFile(str(_file(root, shard, "arrow")), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table, max_chunksize=_ARROW_ROWS)
        pq.write_table(table, _file(root, shard, "parquet"), compression="zstd", row_group_size=_PARQUET_ROWS)
    for shard, samples in enumerate(shards[: max(1, len(shards) // _TAR_PART)]):
        _write_tar(_file(root, shard, "tar"), samples)


def _table(samples: Samples) -> pa.Table:
    ids = pa.ListArray.from_arrays(pa.array(samples.offsets, pa.int32()), pa.array(samples.ids))
    return pa.Table.from_pylist(samples.rows).append_column("ids", ids)


def _write_tar(path: Path, samples: Samples) -> None:
    from webdataset import TarWriter

    with TarWriter(str(path), encoder=False) as writer:
        for at, row in enumerate(samples.rows):
            ids = samples.ids[samples.offsets[at] : samples.offsets[at + 1]].tobytes()
            writer.write({"__key__": f"{at:06d}", "ids": ids, "json": json.dumps(row).encode()})


def _file(root: Path, shard: int, suffix: str) -> Path:
    return root / f"{shard:02d}.{suffix}"


def _one_by_one(root: Path, shards: int, wanted: list[int]) -> Candidates:
    readers = {
        "vistok": TokenStore(root).column("indices").view,
        "Arrow IPC": _arrow_reader(root, shards),
        "Parquet": _parquet_reader(root, shards),
    }
    return _each(readers, wanted)


def _as_tensors(root: Path, shards: int, wanted: list[int]) -> Candidates:
    arrow = _arrow_reader(root, shards)
    readers = {
        "vistok": TokenStore(root).column("indices").__getitem__,
        "Arrow IPC": lambda sample: torch.from_numpy(arrow(sample).copy()),
    }
    return _each(readers, wanted)


def _together(root: Path, shards: int, wanted: list[int]) -> Candidates:
    column = TokenStore(root).column("indices")
    arrow = pa.chunked_array([chunk for shard in range(shards) for chunk in _arrow_ids(root, shard).chunks])
    candidates: dict[str, Callable[[], Array]] = {
        "vistok": lambda: column.gather(wanted).values.numpy(),
        "Arrow IPC": lambda: np.concatenate([chunk.flatten().to_numpy() for chunk in arrow.take(wanted).chunks]),
    }
    _compare({name: [call()] for name, call in candidates.items()})
    return candidates


def _each(readers: Mapping[str, Callable[[int], Array | Tensor]], wanted: list[int]) -> Candidates:
    _compare({name: [np.asarray(read(sample)) for sample in wanted] for name, read in readers.items()})
    return {name: partial(_call_each, read, wanted) for name, read in readers.items()}


def _call_each(read: Callable[[int], object], wanted: list[int]) -> None:
    for sample in wanted:
        read(sample)


def _in_order(sources: Mapping[str, Callable[[Path, int], Iterator[Array]]], root: Path, shards: int) -> Candidates:
    _compare({name: [*arrays(root, shards)] for name, arrays in sources.items()})
    return {name: partial(_highest, arrays, root, shards) for name, arrays in sources.items()}


def _highest(arrays: Callable[[Path, int], Iterator[Array]], root: Path, shards: int) -> int:
    # The cheapest way to read every token once: what the loop costs beside it is what differs.
    return max(int(values.max()) for values in arrays(root, shards))


def _compare(found: Mapping[str, list[Array]]) -> None:
    tokens = {name: np.concatenate(arrays) for name, arrays in found.items()}
    for name, ids in tokens.items():
        assert np.array_equal(ids, tokens["vistok"]), f"{name} delivers other tokens"


def _arrow_ids(root: Path, shard: int) -> pa.ChunkedArray:
    return pa.ipc.open_file(pa.memory_map(str(_file(root, shard, "arrow")))).read_all()["ids"]


def _arrow_reader(root: Path, shards: int) -> Callable[[int], Array]:
    columns = [_arrow_ids(root, shard) for shard in range(shards)]
    ends = list(accumulate(map(len, columns)))

    def read(sample: int) -> Array:
        shard = bisect_right(ends, sample)
        row = sample - ends[shard - 1] if shard else sample
        values: Array = columns[shard][row].values.to_numpy()
        return values

    return read


def _parquet_reader(root: Path, shards: int) -> Callable[[int], Array]:
    files = [pq.ParquetFile(_file(root, shard, "parquet")) for shard in range(shards)]
    ends = list(accumulate(file.metadata.num_rows for file in files))

    def read(sample: int) -> Array:
        shard = bisect_right(ends, sample)
        row = sample - ends[shard - 1] if shard else sample
        group = files[shard].read_row_group(row // _PARQUET_ROWS, columns=["ids"], use_threads=False)
        values: Array = group["ids"][row % _PARQUET_ROWS].values.to_numpy()
        return values

    return read


def _store_arrays(root: Path, shards: int) -> Iterator[Array]:
    for _, (values, _) in zip(range(shards), TokenStore(root).column("indices").scan(), strict=False):
        yield values


def _arrow_arrays(root: Path, shards: int) -> Iterator[Array]:
    for shard in range(shards):
        yield from (chunk.values.to_numpy() for chunk in _arrow_ids(root, shard).chunks)


def _parquet_arrays(root: Path, shards: int) -> Iterator[Array]:
    for shard in range(shards):
        with pq.ParquetFile(_file(root, shard, "parquet")) as file:
            for batch in file.iter_batches(batch_size=10 * _PARQUET_ROWS, columns=["ids"], use_threads=False):
                yield batch.column("ids").values.to_numpy()


def _tar_arrays(root: Path, shards: int) -> Iterator[Array]:
    from webdataset.tariterators import group_by_keys, tar_file_expander

    for path in (_file(root, shard, "tar") for shard in range(shards)):
        with path.open("rb") as stream:  # WebDataset itself would leave it to the garbage collector to close
            for sample in group_by_keys(tar_file_expander([{"url": str(path), "stream": stream}])):
                yield np.frombuffer(sample["ids"], np.uint16)
