"""A store behind a URL is written, resumed, checked and cleaned like one in a folder, with the same bytes."""

import json
import random
from dataclasses import replace

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from vistok.data.encode import encode_folder, run_plan
from vistok.data.encode_shard import Schedule
from vistok.data.gc import collect_garbage
from vistok.data.plan import EncodeSettings, make_plan
from vistok.data.retry import Backoff
from vistok.data.store import TokenStore
from vistok.data.store_files import open_files
from vistok.data.summary import summarize_store
from vistok.data.verify import verify_store

FOUR = EncodeSettings(shard_samples=4, threads=1)


@pytest.fixture
def bucket():
    """The URL of an empty bucket in memory."""
    fs = fsspec.filesystem("memory")
    yield "memory://bucket"
    fs.rm("/bucket", recursive=True)


def local_files(root) -> dict[str, bytes]:
    """Data, errors and dataset.json of a store in a folder, by path."""
    found = [path for folder in ("shards", "errors") for path in (root / folder).glob("*")]
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in [*found, root / "dataset.json"]}


def remote_files(url: str) -> dict[str, bytes]:
    """The same of a store behind a URL."""
    fs, root = fsspec.core.url_to_fs(url)
    names = [name for name in fs.find(root) if "/commits/" not in name]
    return {name[len(root) + 1 :]: fs.cat_file(name) for name in names}


def test_a_store_behind_a_url_has_the_bytes_of_one_in_a_folder(discrete, photos, encoded, bucket):
    (photos / "p0.png").write_bytes(b"no picture")
    url = f"{bucket}/deep/store"
    summary = encode_folder(discrete, photos, url, FOUR)
    encode_folder(discrete, photos, photos.parent / "local", FOUR)
    assert remote_files(url) == local_files(photos.parent / "local")
    assert (summary.images, summary.errors, summary.shards) == (8, 1, 3)
    assert len(TokenStore(url, tokenizer=discrete)) == 8 and verify_store(url) == {}
    facts = summarize_store(url)
    assert (facts["samples"], facts["errors"], facts["shards_committed"]) == (8, 1, 3)


def test_a_file_url_is_the_folder(discrete, photos, encoded, tmp_path):
    encode_folder(discrete, photos, f"file://{tmp_path}/store", FOUR)
    assert local_files(tmp_path / "store") == local_files(encoded)
    assert verify_store(f"file://{tmp_path}/store") == {}


def test_committed_shards_are_skipped_and_another_plan_is_refused(discrete, photos, bucket):
    url = f"{bucket}/store"
    encode_folder(discrete, photos, url, FOUR)
    fs = fsspec.filesystem("memory")
    fs.rm("/bucket/store/commits/00001.json")
    summary = encode_folder(discrete, photos, url, FOUR)
    assert (summary.encoded, summary.shards_skipped, summary.images) == (4, 2, 9)
    with pytest.raises(ValueError, match="memory://bucket/store was made by another plan: batch: there 8, here 2"):
        encode_folder(discrete, photos, url, replace(FOUR, batch=2))
    fs.pipe_file("/bucket/other/file", b"mine")
    with pytest.raises(ValueError, match="memory://bucket/other: expected a new or empty folder"):
        encode_folder(discrete, photos, f"{bucket}/other", FOUR)


class _Killed(BaseException):
    """What no handler catches, like the end of the process."""


def test_a_run_stopped_at_any_put_is_completed_by_the_next(discrete, photos, encoded, bucket, monkeypatch):
    real = MemoryFileSystem.pipe_file
    for step in range(10):  # dataset.json, and three objects of each of three shards
        url = f"{bucket}/{step}"
        calls = iter(range(100))

        def stopping(self, path, value, mode="overwrite", calls=calls, step=step, **options):
            if next(calls) == step:
                raise _Killed
            return real(self, path, value, mode=mode, **options)

        monkeypatch.setattr(MemoryFileSystem, "pipe_file", stopping)
        with pytest.raises(_Killed):
            encode_folder(discrete, photos, url, FOUR)
        monkeypatch.setattr(MemoryFileSystem, "pipe_file", real)
        encode_folder(discrete, photos, url, FOUR)
        assert remote_files(url) == local_files(encoded)
        assert verify_store(url) == {}


def test_the_commit_record_is_put_last(discrete, photos, bucket, monkeypatch):
    put = []
    real = MemoryFileSystem.pipe_file

    def noted(self, path, value, mode="overwrite", **options):
        put.append(path.split("store/")[1])
        return real(self, path, value, mode=mode, **options)

    monkeypatch.setattr(MemoryFileSystem, "pipe_file", noted)
    encode_folder(discrete, photos, f"{bucket}/store", replace(FOUR, shard_samples=9))
    assert put == ["dataset.json", "shards/00000.safetensors", "shards/00000.parquet", "commits/00000.json"]


def test_requests_that_fail_for_a_moment_are_repeated(discrete, photos, encoded, bucket, monkeypatch):
    failing = random.Random(0)
    failed = []

    def flaky(real):
        def call(self, *args, **options):
            if failing.random() < 0.3:
                failed.append(real.__name__)
                raise OSError(5, "busy")  # EIO
            return real(self, *args, **options)

        return call

    for name in ("pipe_file", "cat_file", "ls", "info", "rm_file"):
        monkeypatch.setattr(MemoryFileSystem, name, flaky(getattr(MemoryFileSystem, name)))
    monkeypatch.setattr(Backoff, "wait", lambda self, attempt: None)
    monkeypatch.setattr(Backoff, "__init__", _patient(Backoff.__init__))
    url = f"{bucket}/store"
    encode_folder(discrete, photos, url, FOUR)
    assert verify_store(url) == {} and {"pipe_file", "cat_file", "ls"} <= {*failed}
    monkeypatch.undo()
    assert remote_files(url) == local_files(encoded)


def _patient(real):
    def init(self, attempts=40, first=0.0, longest=0.0):
        real(self, attempts, first, longest)

    return init


def test_an_error_that_stays_ends_the_run_with_the_url_and_no_commit_record(discrete, photos, bucket, monkeypatch):
    monkeypatch.setattr(Backoff, "wait", lambda self, attempt: None)
    real = MemoryFileSystem.pipe_file

    def full(self, path, value, mode="overwrite", **options):
        if path.endswith("00001.parquet"):
            raise OSError(28, "No space left on device")
        return real(self, path, value, mode=mode, **options)

    monkeypatch.setattr(MemoryFileSystem, "pipe_file", full)
    with pytest.raises(
        OSError, match="No space left.*run the same command again.*memory://bucket/store/shards/00001.pa"
    ):
        encode_folder(discrete, photos, f"{bucket}/store", FOUR)
    assert [*TokenStore(f"{bucket}/store").commits] == [0]


def test_worker_processes_refuse_a_store_that_only_this_process_sees(discrete, photos, bucket):
    with pytest.raises(ValueError, match="memory://bucket/store: worker processes cannot write there"):
        run_plan(make_plan(discrete, photos, FOUR), discrete, f"{bucket}/store", Schedule(workers=2))


def test_the_first_to_claim_a_url_has_it(discrete, photos, bucket, monkeypatch):
    url = f"{bucket}/store"
    files = open_files(url)
    files.create("dataset.json", b"{}")
    with pytest.raises(FileExistsError):
        files.create("dataset.json", b"[]")
    real = type(files).contents
    seen = iter([[None]])
    monkeypatch.setattr(type(files), "contents", lambda self, paths: next(seen, None) or real(self, paths))
    monkeypatch.setattr(type(files), "listed", lambda self, folder: [])  # before the other one came
    with pytest.raises(ValueError, match="was made by another plan"):
        encode_folder(discrete, photos, url, FOUR)


def test_a_shard_that_is_damaged_or_gone_is_told(discrete, photos, bucket):
    url = f"{bucket}/store"
    encode_folder(discrete, photos, url, FOUR)
    fs = fsspec.filesystem("memory")
    content = fs.cat_file("/bucket/store/shards/00000.safetensors")
    fs.pipe_file("/bucket/store/shards/00000.safetensors", content[:-1] + b"x")
    fs.rm("/bucket/store/shards/00001.parquet")
    problems = verify_store(url)
    assert problems["00000"][0].startswith("00000.safetensors: sha256 is")
    assert problems["00001"] == ["00001.parquet: is missing"] and "00002" not in problems


def test_garbage_behind_a_url_is_what_has_no_record_and_is_old(discrete, photos, bucket):
    url = f"{bucket}/store"
    encode_folder(discrete, photos, url, FOUR)
    fs = fsspec.filesystem("memory")
    fs.rm("/bucket/store/commits/00001.json")
    fs.pipe_file("/bucket/store/commits/00002.json", json.dumps({"plan_hash": "another"}).encode())
    assert collect_garbage(url) == []
    assert len(collect_garbage(url, min_age=0, dry_run=True)) == 5 and fs.exists("/bucket/store/shards/00001.parquet")
    assert [item.file for item in collect_garbage(url, min_age=0)][0] == "commits/00002.json"
    assert fs.find("/bucket/store/shards") == [
        f"/bucket/store/shards/00000.{kind}" for kind in ("parquet", "safetensors")
    ]
    encode_folder(discrete, photos, url, FOUR)
    assert verify_store(url) == {} and len(TokenStore(url)) == 9
