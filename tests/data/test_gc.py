import json
import os
from pathlib import Path

import pytest

from vistok.data.gc import collect_garbage
from vistok.data.shard import locked, shard_files
from vistok.data.verify import verify_store


def _tree(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def _litter(root: Path) -> set[str]:
    """Make shard 1 lose its record and shard 2 belong to another plan; the files that are garbage then."""
    shard_files(root, 1).commit.unlink()
    other = shard_files(root, 2).commit
    other.write_text(json.dumps(json.loads(other.read_text()) | {"plan_hash": "another"}))
    (root / "errors").mkdir(exist_ok=True)
    garbage = {
        "dataset.json.tmp.77.1",
        "commits/00000.json.tmp.77.12",
        "shards/00000.safetensors.tmp.77.1",
        "shards/00001.parquet.tmp.1.2",
        "shards/12345678.parquet",
        "errors/00001.jsonl",
        "errors/00001.jsonl.tmp.5.5",
        "commits/00009.json",
    }
    for name in garbage:
        (root / name).write_bytes(b"left" if name != "commits/00009.json" else b'{"plan_hash": "another"}')
    shards = {f"shards/{shard:05d}.{kind}" for shard in (1, 2) for kind in ("safetensors", "parquet")}
    return garbage | shards | {"commits/00002.json"}


def test_garbage_is_deleted_and_nothing_else(store):
    garbage = _litter(store.path)
    (store.path / "errors/00000.jsonl").write_text('{"key": "mine"}')  # of a committed shard
    before = _tree(store.path)
    deleted = collect_garbage(store.path)
    assert {item.file for item in deleted} == garbage
    assert {item.file: item.bytes for item in deleted} == {name: len(before[name]) for name in garbage}
    assert _tree(store.path) == {name: content for name, content in before.items() if name not in garbage}
    assert collect_garbage(store.path) == []


def test_the_reasons_are_told(store):
    _litter(store.path)
    why = {item.file: item.why for item in collect_garbage(store.path)}
    assert why["commits/00002.json"] == "commit record of another plan"
    assert why["shards/00001.parquet"] == "shard without a commit record"
    assert why["shards/00001.parquet.tmp.1.2"] == "temporary file of a run that was interrupted"


def test_a_dry_run_finds_the_same_and_deletes_nothing(store):
    _litter(store.path)
    before = _tree(store.path)
    found = collect_garbage(store.path, dry_run=True)
    assert _tree(store.path) == before
    assert collect_garbage(store.path) == found and found


@pytest.mark.parametrize(
    "name",
    [
        "notes.txt",
        "shards/notes.txt",
        "shards/1.parquet",
        "shards/000007.parquet",
        "shards/00007.parquet.bak",
        "shards/00007.parquet.tmp",
        "shards/00007.parquet.tmp.a.1",
        "shards/x00007.parquet",
        "shards/\u0660\u0660\u0660\u0660\u0667.parquet",
        "shards/00007.json",
        "shards/more/00007.parquet",
        "commits/mine.json",
        "other/00007.parquet",
        "dataset.json.bak",
        "00007.parquet",
    ],
)
def test_names_that_are_not_the_stores_stay(store, name):
    file = store.path / name
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(b"mine")
    assert collect_garbage(store.path) == [] and file.read_bytes() == b"mine"


def test_links_are_neither_followed_nor_deleted(store, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "00007.jsonl").write_bytes(b"mine")
    (store.path / "errors").symlink_to(outside)
    (store.path / "shards/00008.parquet").symlink_to(outside / "00007.jsonl")
    assert collect_garbage(store.path) == []
    assert (outside / "00007.jsonl").exists() and (store.path / "shards/00008.parquet").is_symlink()


def test_a_sound_store_stays_sound(store):
    (store.path / "shards/00001.parquet.tmp.1.2").write_bytes(b"left")
    collect_garbage(store.path)
    assert verify_store(store.path) == {} and len(store) == 9


# A lock belongs to the open file, so one that this process opens twice excludes itself like two processes.
def test_a_store_that_is_being_written_is_refused(store):
    _litter(store.path)
    before = _tree(store.path)
    with (
        locked(store.path, exclusive=False),
        pytest.raises(ValueError, match=rf"{store.path}.*no other process"),
    ):
        collect_garbage(store.path)
    assert _tree(store.path) == before
    assert collect_garbage(store.path)


def test_a_record_that_cannot_be_read_stops_before_anything_is_deleted(store):
    _litter(store.path)
    shard_files(store.path, 0).commit.write_text("{")
    before = _tree(store.path)
    with pytest.raises(ValueError, match="00000.json"):
        collect_garbage(store.path)
    assert _tree(store.path) == before


def test_a_folder_that_is_no_store_is_left_alone(tmp_path):
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards/00000.parquet").write_bytes(b"mine")
    with pytest.raises(FileNotFoundError, match="dataset.json"):
        collect_garbage(tmp_path)
    assert os.listdir(tmp_path / "shards") == ["00000.parquet"]
