"""Pictures to a token store: the run over all shards that are left, by one of the executors."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from vistok.data.claim import claim
from vistok.data.encode_shard import OnImages, Schedule, ShardWork, ignored
from vistok.data.inputs.entry import Entry, Input
from vistok.data.plan import EncodeSettings, Plan, make_plan
from vistok.data.processes import run_in_processes
from vistok.data.remote import RemoteFiles
from vistok.data.store_files import open_files, read_commits, recorded_shards
from vistok.protocols import Tokenizer

Commits = dict[int, dict[str, Any]]  # commit records by shard


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
