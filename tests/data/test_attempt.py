"""A worker that is cut off and goes on writes what it likes; the shard stays what was committed."""

from dataclasses import dataclass, field, replace

import fsspec
import pytest

from vistok.data.attempt import commit_attempt, write_attempt
from vistok.data.claim import claim
from vistok.data.encode import run_plan
from vistok.data.encode_shard import Schedule, ShardWork
from vistok.data.gc import collect_garbage
from vistok.data.inputs.entry import Input
from vistok.data.inputs.open import open_input
from vistok.data.plan import EncodeSettings, make_plan
from vistok.data.shard_content import open_committed
from vistok.data.store_files import open_files
from vistok.data.verify import verify_store

FIVE = EncodeSettings(threads=1, shard_samples=5)


@dataclass
class Flaky:
    """An input whose pictures cannot be read at some times."""

    whole: Input
    failing: set[str] = field(default_factory=set)

    @property
    def fields(self):
        return self.whole.fields

    left_out: dict[str, int] = field(default_factory=dict)

    def entries(self):
        return self.whole.entries()

    def read(self, entry):
        if entry.key in self.failing:
            raise ConnectionError("not now")
        return self.whole.read(entry)


@pytest.fixture(params=["folder", "memory"])
def place(request, tmp_path) -> str:
    if request.param == "folder":
        return str(tmp_path / "store")
    request.addfinalizer(lambda: fsspec.filesystem("memory").rm("/attempts", recursive=True))
    return "memory://attempts/store"


@pytest.fixture
def started(discrete, photos, place):
    """A plan over an input that may fail, and the work on it; its store is claimed."""
    plan = make_plan(discrete, Flaky(open_input(photos)), FIVE)
    files = open_files(place)
    claim(files, plan.dataset)
    return plan, ShardWork(replace(plan, entries=()), discrete, files, Schedule(decode_threads=1))


def shard_bytes(files):
    return files.contents([f"shards/0000{n}.{kind}" for n in range(2) for kind in ("safetensors", "parquet")])


def test_what_a_lost_worker_writes_late_changes_no_committed_shard(started, discrete, photos, place, tmp_path):
    plan, work = started
    run_plan(make_plan(discrete, photos, FIVE), discrete, tmp_path / "quiet")
    plan.input.failing.add("p2.png")
    early = write_attempt(work, 0, plan.shard(0))  # given up by its driver
    plan.input.failing.clear()
    for shard in range(2):
        commit_attempt(work, write_attempt(work, shard, plan.shard(shard)))
    plan.input.failing.update(("p2.png", "p3.png"))
    late = write_attempt(work, 0, plan.shard(0))
    assert early.record["n_errors"] == 1 and late.record["n_errors"] == 2
    assert verify_store(place) == {} and shard_bytes(work.files) == shard_bytes(open_files(tmp_path / "quiet"))
    assert open_committed(place).commits[0]["n_errors"] == 0 and work.files.contents(["errors/00000.jsonl"]) == [None]
    # The danger is real: without a name of its own, the same late worker spoils the shard.
    work.encode(0, plan.shard(0))
    assert [*verify_store(place)] == ["00000"]


def test_what_attempts_left_behind_is_garbage(started, place):
    plan, work = started
    plan.input.failing.add("p1.png")
    write_attempt(work, 0, plan.shard(0))
    commit_attempt(work, write_attempt(work, 0, plan.shard(0)))
    before = shard_bytes(work.files)
    found = collect_garbage(place, min_age=0)
    assert sorted(item.file.partition(".attempt.")[0] for item in found) == [
        "errors/00000.jsonl", "shards/00000.parquet", "shards/00000.safetensors",
    ]  # fmt: skip
    assert all("interrupted" in item.why for item in found) and collect_garbage(place, min_age=0) == []
    assert shard_bytes(work.files) == before and verify_store(place) == {}


def test_an_attempt_in_which_too_many_failed_leaves_its_errors_only(started, place):
    plan, work = started
    plan.input.failing.add("p1.png")
    work = replace(work, schedule=Schedule(decode_threads=1, max_error_rate=0.1))
    attempt = write_attempt(work, 0, plan.shard(0))
    commit_attempt(work, attempt)
    assert attempt.record is None and shard_bytes(work.files) == [None] * 4
    [errors] = work.files.contents(["errors/00000.jsonl"])
    assert b"not now" in errors and work.files.listed("commits") == []


def test_data_that_the_driver_does_not_find_are_not_committed(started, place):
    plan, work = started
    attempt = write_attempt(work, 1, plan.shard(1))
    work.files.remove(f"shards/00001.parquet.attempt.{attempt.name}")
    with pytest.raises(ValueError, match="expected the files of shard 1 here, worker .* wrote them elsewhere"):
        commit_attempt(work, attempt)
    assert work.files.listed("commits") == []
