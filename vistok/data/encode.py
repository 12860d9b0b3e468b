"""Pictures to a token store: the worker for one shard, and the run over all that are left, by one of the executors.

A picture that cannot be encoded is written to errors/NNNNN.jsonl and takes no other with it. The plan fixes what is
computed together, so the number of workers and of decode threads changes no byte.
"""

import hashlib
import inspect
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from vistok.data.claim import claim
from vistok.data.inputs.entry import Entry, Input
from vistok.data.load import Loaded, load
from vistok.data.plan import EncodeSettings, Plan, make_plan
from vistok.data.processes import run_in_processes
from vistok.data.remote import RemoteFiles
from vistok.data.shard import Sample, stored_columns, write_commit, write_data, write_errors
from vistok.data.store_files import StoreFiles, open_files, read_commits, recorded_shards
from vistok.layers.preprocess import Preprocess, as_float
from vistok.protocols import Tokenizer

Commits = dict[int, dict[str, Any]]  # commit records by shard
OnImages = Callable[[int], None]
Loader = Callable[..., Iterator[Loaded]]


def ignored(count: int) -> None:
    """Hears of progress and does nothing."""


@dataclass(frozen=True)
class Schedule:
    """How the work is done, none of which changes a byte of the store.

    workers: processes that take shards in turn; 1 = this process. decode_threads: threads per worker that read and
    decode pictures while the tokenizer computes. max_restarts: how many dead worker processes are replaced.
    max_error_rate: a shard with a larger share of pictures that failed is not committed. retry_errors: encode those
    shards again in which a picture failed.
    """

    workers: int = 1
    decode_threads: int = 2
    max_restarts: int = 3
    max_error_rate: float = 1.0
    retry_errors: bool = False

    def __post_init__(self) -> None:
        """Raises: ValueError naming what is out of range."""
        for name, least in (("workers", 1), ("decode_threads", 1), ("max_restarts", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"encode: expected {name} >= {least}, got {getattr(self, name)}")
        if not 0 <= self.max_error_rate <= 1:
            raise ValueError(f"encode: expected max_error_rate from 0 to 1, got {self.max_error_rate}")


@dataclass(frozen=True)
class EncodeSummary:
    """images, tokens, bytes, errors, shards: in the whole store; encoded: images of this run, which took `seconds`."""

    images: int
    tokens: int
    bytes: int
    errors: int
    shards: int
    shards_skipped: int
    encoded: int
    seconds: float
    images_per_second: float
    plan_hash: str


def encode_folder(
    tokenizer: Tokenizer,
    source: str | Path | Input,
    out: str | Path,
    settings: EncodeSettings | None = None,
    schedule: Schedule | None = None,
    *,
    executor: "Executor | None" = None,
) -> EncodeSummary:
    """Encode every picture of `source` into the token store `out`; run again to go on after an interruption.

    source: a folder, glob, tar, Parquet file or Hugging Face data set on disk, see `open_input`.
    Raises: as `make_plan` and `run_plan`.
    """
    return run_plan(make_plan(tokenizer, source, settings), tokenizer, out, schedule, executor=executor)


def run_plan(
    plan: Plan,
    tokenizer: Tokenizer,
    out: str | Path,
    schedule: Schedule | None = None,
    *,
    on_images: OnImages = ignored,
    executor: "Executor | None" = None,
) -> EncodeSummary:
    """Do what is left of a plan. `on_images` hears how many pictures are done since it was last called.

    out: a folder, or a URL that fsspec can write to. executor: who works on the shards, None = this machine.
    Raises: ValueError if `out` belongs to another plan, or naming the shards in which too many pictures failed, when
    all others are done; OSError if a file cannot be written; ChildProcessError if worker processes keep dying.
    """
    schedule = schedule or Schedule()
    files = open_files(out)
    claim(files, plan.dataset)
    begin = time.perf_counter()
    with files.held(exclusive=False):
        there = read_commits(files, plan.hash, recorded_shards(files, plan.num_shards))
        left = [shard for shard in range(plan.num_shards) if _is_left(there.get(shard), schedule)]
        on_images(len(plan.entries) - sum(len(plan.shard(shard)) for shard in left))
        # The entries go with each shard: a worker need not hold those of all.
        work = ShardWork(replace(plan, entries=()), tokenizer, files, schedule)
        (executor or on_this_machine)(work, {shard: plan.shard(shard) for shard in left}, on_images)
    seconds = time.perf_counter() - begin
    commits = read_commits(files, plan.hash, recorded_shards(files, plan.num_shards))
    _check_all_committed(commits, files.name, left, schedule)
    return _summary(plan, commits, left, seconds)


@dataclass(frozen=True)
class ShardWork:
    """What a worker needs to encode any shard of a plan, besides the shard's entries: plan (without entries), model.

    Pickles, also for another machine, where `files` and the plan's input must mean the same places.
    """

    plan: Plan
    tokenizer: Tokenizer
    files: StoreFiles
    schedule: Schedule

    def commit(self, record: Mapping[str, Any]) -> None:
        """Make a shard part of the store. Raises: OSError naming the file."""
        write_commit(self.files, record)

    def encode(
        self, shard: int, entries: Sequence[Entry], on_images: OnImages = ignored, loader: Loader = load
    ) -> dict[str, Any] | None:
        """Encode the entries of one shard and write its data; its commit record, None if too many failed.

        The same bytes each time, so a shard may be encoded twice, even by two workers at once. loader: who reads and
        decodes, with the arguments of `load`.
        """
        begin = time.perf_counter()
        plan, settings = self.plan, self.plan.settings
        place = {entry.key: number for number, entry in enumerate(entries)}
        samples: list[Sample] = []
        errors: list[dict[str, str]] = []

        def failed(key: str, error: Exception) -> None:
            errors.append({"key": key, "error": type(error).__name__, "message": str(error)})
            on_images(1)

        with _ready_to_encode(self.tokenizer, settings):
            loaded = loader(
                entries,
                plan.input,
                plan.fields,
                getattr(self.tokenizer, "preprocess", Preprocess()),
                threads=self.schedule.decode_threads,
                ahead=2 * settings.batch,  # while one batch is encoded, the next can be decoded
                max_pixels=settings.max_pixels,
                failed=lambda entry, error: failed(entry.key, error),
            )
            for batch in batches_by_size(loaded, settings.batch, settings.batch_pixels):
                encoded = _encoded(self.tokenizer, batch, plan, failed)
                samples += encoded
                on_images(len(encoded))
        samples.sort(key=lambda sample: place[sample.row["key"]])
        errors.sort(key=lambda error: place[error["key"]])
        if len(errors) > self.schedule.max_error_rate * len(entries):
            write_errors(self.files, shard, errors)
            return None
        return write_data(
            self.files,
            shard,
            samples,
            errors,
            header={name: str(plan.record[name]) for name in ("tokenizer", "fingerprint")},
            plan_hash=plan.hash,
            schema=plan.row_schema,
            seconds=time.perf_counter() - begin,
        )

    def encode_and_commit(self, shard: int, entries: Sequence[Entry], on_images: OnImages = ignored) -> None:
        """Encode the entries of one shard and commit it, unless too many fail."""
        record = self.encode(shard, entries, on_images)
        if record is not None:
            self.commit(record)


class Executor(Protocol):
    """Encodes and commits shards, somewhere; `shards` are the entries of each. `on_images` hears of progress.

    Raises: OSError if a file cannot be written; ChildProcessError if workers keep dying.
    """

    def __call__(self, work: ShardWork, shards: Mapping[int, Sequence[Entry]], on_images: OnImages) -> None: ...


def on_this_machine(work: ShardWork, shards: Mapping[int, Sequence[Entry]], on_images: OnImages) -> None:
    """The executor without a cluster: this process, or `schedule.workers` processes beside it."""
    if work.schedule.workers == 1 or len(shards) <= 1:
        for shard, entries in shards.items():
            work.encode_and_commit(shard, entries, on_images)
        return
    if isinstance(work.files, RemoteFiles) and work.files.in_this_process_only:
        raise ValueError(f"{work.files.name}: worker processes cannot write there; give workers=1, or another URL")
    run_in_processes(
        work.encode_and_commit,
        {shard: (entries,) for shard, entries in shards.items()},
        workers=work.schedule.workers,
        max_restarts=work.schedule.max_restarts,
        on_count=on_images,
    )


def batches_by_size(items: Iterable[Loaded], batch: int, max_pixels: int) -> Iterator[list[Loaded]]:
    """Group images [3, H, W] of one size, at most `batch` of them; no more than about `max_pixels` wait to be grouped.

    Which images meet depends on their order only.
    """
    waiting: dict[tuple[int, int], list[Loaded]] = {}

    def pixels(size: tuple[int, int]) -> int:
        return len(waiting[size]) * size[0] * size[1]

    for item in items:
        height, width = item.image.shape[1:]
        waiting.setdefault((height, width), []).append(item)
        if len(waiting[height, width]) == batch:
            yield waiting.pop((height, width))
        elif sum(map(pixels, waiting)) > max_pixels:
            yield waiting.pop(max(waiting, key=pixels))
    yield from waiting.values()


def _encoded(
    tokenizer: Tokenizer, batch: list[Loaded], plan: Plan, failed: Callable[[str, Exception], None]
) -> list[Sample]:
    try:
        images = _batched([item.image for item in batch], plan.settings.device)
        options = plan.settings.options | _generators(tokenizer, batch, plan.settings)
        tokens = tokenizer.encode(images, **options).to("cpu").check()
        columns: dict[str, str] = plan.record["columns"]
        return [
            Sample(item.row, one.spec, stored_columns(one, columns)) for item, one in zip(batch, tokens, strict=True)
        ]
    except Exception as error:  # find out which one it was, the others are encoded
        if len(batch) == 1:
            failed(batch[0].row["key"], error)
            return []
    return [sample for item in batch for sample in _encoded(tokenizer, [item], plan, failed)]


def _batched(images: list[Tensor], device: str) -> Tensor:
    """Images [3, H, W] of one size, uint8 or float32, to float32 [B, 3, H, W] in [0, 1] on the device."""
    # In the layout that decoders give and convolutions like best.
    rows = [image.permute(1, 2, 0) for image in images]
    if torch.device(device).type != "cpu":
        return as_float(torch.stack(rows).to(device)).permute(0, 3, 1, 2)
    batch = np.empty((len(rows), *rows[0].shape), np.float32)
    for row, place in zip(rows, batch, strict=True):  # one by one, so that each stays in the cache
        # numpy, because torch's threads would take the cores from the decoders for as long as they wait for more.
        np.copyto(place, row.numpy())
        if row.dtype == torch.uint8:
            place /= np.float32(255)
    return torch.from_numpy(batch).permute(0, 3, 1, 2)


def _generators(tokenizer: Tokenizer, batch: list[Loaded], settings: EncodeSettings) -> dict[str, Any]:
    """A generator per picture for a tokenizer that can draw, so that what it draws does not depend on the batch."""
    if "generator" not in inspect.signature(tokenizer.encode).parameters:
        return {}
    digests = [hashlib.sha256(f"{settings.seed}:{item.row['key']}".encode()).digest() for item in batch]
    return {"generator": [torch.Generator().manual_seed(int.from_bytes(digest[:8], "little")) for digest in digests]}


@contextmanager
def _ready_to_encode(tokenizer: Tokenizer, settings: EncodeSettings) -> Iterator[None]:
    threads = torch.get_num_threads()
    training = isinstance(tokenizer, nn.Module) and tokenizer.training
    if isinstance(tokenizer, nn.Module):
        tokenizer.eval().to(settings.device)
    torch.set_num_threads(settings.threads)
    try:
        with torch.inference_mode():
            yield
    finally:
        torch.set_num_threads(threads)
        if isinstance(tokenizer, nn.Module):
            tokenizer.train(training)


def _is_left(record: Mapping[str, Any] | None, schedule: Schedule) -> bool:
    return record is None or (schedule.retry_errors and record["n_errors"] > 0)


def _check_all_committed(commits: Commits, name: str, done: list[int], schedule: Schedule) -> None:
    missing = [shard for shard in done if shard not in commits]
    if missing:
        raise ValueError(
            f"{name}: more than {schedule.max_error_rate:.2%} of the pictures failed in {len(missing)} shards "
            f"({', '.join(map(str, missing[:8]))}), which are not committed; {name}/errors says why. Run again to "
            "try them once more, or with a larger max_error_rate to leave out what fails"
        )


def _summary(plan: Plan, commits: Commits, done: list[int], seconds: float) -> EncodeSummary:
    records = commits.values()
    encoded = sum(commits[shard]["n_samples"] for shard in done)
    return EncodeSummary(
        images=sum(record["n_samples"] for record in records),
        tokens=sum(record["n_tokens"] for record in records),
        bytes=sum(record["bytes"] for record in records),
        errors=sum(record["n_errors"] for record in records),
        shards=len(commits),
        shards_skipped=plan.num_shards - len(done),
        encoded=encoded,
        seconds=seconds,
        images_per_second=encoded / seconds if seconds else 0.0,
        plan_hash=plan.hash,
    )
