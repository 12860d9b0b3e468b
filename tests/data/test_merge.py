import hashlib
import json
from pathlib import Path

import pyarrow as pa
import pytest
import torch

from vistok.data.gc import collect_garbage
from vistok.data.merge import merge_stores
from vistok.data.shard import ROW_SCHEMA, Sample, shard_files, write_shard
from vistok.data.store import TokenStore
from vistok.data.verify import verify_store
from vistok.rows import grid_coords
from vistok.tokens import TokenSpec

TAG = pa.field("tag", pa.timestamp("ns"))


def _sample(key: str) -> Sample:
    digest = hashlib.sha256(key.encode()).digest()
    rows = 1 + digest[0] % 4
    ids = torch.tensor([*digest[: rows * 3]], dtype=torch.uint16)
    row = {"key": key, "digest": digest.hex()[:32], "caption": f"a {key}", "tag": len(key)}
    columns = {"indices": ids, "coords": grid_coords(rows, 3)[0].to(torch.int16)}
    return Sample(row, TokenSpec("made", 0, (256,), (rows, 3), 8, (rows * 8, 24)), columns)


def _store(root: Path, shards: list[str], *, fields: tuple[pa.Field, ...] = (TAG,), failed=(), **changes) -> Path:
    """A store of samples of one letter, "ab" being a shard of two; `failed`: keys of pictures that failed."""
    dataset = {"format": "vistok-store", "version": 1, "plan_hash": f"plan of {root.name}", "num_shards": len(shards)}
    dataset |= {"tokenizer": "made", "fingerprint": "f" * 64, "columns": {"indices": "uint16"}, "batch": 8}
    dataset |= {"fields": {field.name: str(field.type) for field in fields}, "inputs": {"count": 9}, "split": None}
    dataset |= changes
    root.mkdir(parents=True)
    (root / "dataset.json").write_text(json.dumps(dataset))
    for number, keys in enumerate(shards):
        errors = [{"key": key, "error": "ValueError", "message": "bad"} for key in failed] if number == 0 else []
        write_shard(
            root,
            number,
            [*map(_sample, keys)],
            errors,
            header={name: dataset[name] for name in ("tokenizer", "fingerprint")},
            plan_hash=dataset["plan_hash"],
            schema=pa.schema([*ROW_SCHEMA, *fields]),
        )
    return root


def _tree(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def _same_samples(read: TokenStore, expected: list[TokenStore]) -> None:
    items = [item for store in expected for item in store]
    assert [*read.rows] == [row for store in expected for row in store.rows]
    assert len(read) == len(items)
    for one, other in zip(read, items, strict=True):
        assert one.spec == other.spec
        assert torch.equal(one.indices, other.indices) and torch.equal(one.coords, other.coords)


def test_a_merged_store_is_sound_and_reads_like_its_sources_one_after_the_other(tmp_path):
    sources = [_store(tmp_path / "x", ["ab", "c"], failed="z"), _store(tmp_path / "y", ["d", "", "ef"])]
    summary = merge_stores(sources, tmp_path / "out")
    assert verify_store(tmp_path / "out") == {}
    _same_samples(TokenStore(tmp_path / "out"), [TokenStore(path) for path in sources])
    assert (summary.stores, summary.shards, summary.copied, summary.samples, summary.errors) == (2, 5, 5, 6, 1)
    assert summary.tokens == sum(len(item.indices[0]) for path in sources for item in TokenStore(path))


def test_shards_are_copied_byte_for_byte_and_are_files_of_their_own(tmp_path):
    sources = [_store(tmp_path / "x", ["ab", "c"], failed="z"), _store(tmp_path / "y", ["d"])]
    merge_stores(sources, tmp_path / "out")
    for number, (source, shard) in enumerate([(sources[0], 0), (sources[0], 1), (sources[1], 0)]):
        for here, there in zip(shard_files(source, shard)[:3], shard_files(tmp_path / "out", number)[:3], strict=True):
            assert here.exists() == there.exists()
            assert not here.exists() or (here.read_bytes() == there.read_bytes() and there.stat().st_nlink == 1)


def test_the_merged_plan_keeps_what_is_shared_and_says_where_the_rest_comes_from(tmp_path):
    sources = [_store(tmp_path / "x", ["ab", "c"]), _store(tmp_path / "y", ["d"], batch=4, decoder="PIL")]
    merge_stores(sources, tmp_path / "out")
    dataset = json.loads((tmp_path / "out/dataset.json").read_text())
    assert dataset["inputs"] == {"count": 9} and "batch" not in dataset and dataset["num_shards"] == 3
    assert dataset["merged_from"] == [
        {"num_shards": 2, "plan_hash": "plan of x", "batch": 8},
        {"num_shards": 1, "plan_hash": "plan of y", "batch": 4, "decoder": "PIL"},
    ]


def test_a_merge_of_merges_is_a_merge_of_all(tmp_path):
    sources = [_store(tmp_path / name, [name], batch=batch) for name, batch in (("x", 1), ("y", 2), ("z", 3))]
    merge_stores(sources[:2], tmp_path / "two")
    merge_stores([tmp_path / "two", sources[2]], tmp_path / "out")
    _same_samples(TokenStore(tmp_path / "out"), [TokenStore(path) for path in sources])
    merged = json.loads((tmp_path / "out/dataset.json").read_text())["merged_from"]
    assert [(entry["plan_hash"], entry["batch"]) for entry in merged] == [
        ("plan of x", 1),
        ("plan of y", 2),
        ("plan of z", 3),
    ]


def test_the_plan_hash_follows_contents_and_order(tmp_path):
    one, other = _store(tmp_path / "x", ["ab"]), _store(tmp_path / "y", ["d"])
    hashes = {
        merge_stores(sources, tmp_path / f"out{number}").plan_hash
        for number, sources in enumerate([[one, other], [other, one], [one]])
    }
    assert len(hashes) == 3
    assert merge_stores([one, other], tmp_path / "again").plan_hash in hashes


@pytest.mark.parametrize("cut", range(3))
def test_an_interrupted_merge_goes_on(tmp_path, cut):
    sources = [_store(tmp_path / "x", ["ab", "c"], failed="z"), _store(tmp_path / "y", ["d"])]
    merge_stores(sources, tmp_path / "whole")
    out = tmp_path / "out"
    merge_stores(sources, out)
    # As a kill leaves it: this shard without a record, its data half there, a temporary file.
    files = shard_files(out, cut)
    files.commit.unlink()
    files.rows.unlink()
    files.tensors.write_bytes(b"half")
    files.rows.with_name(f"{files.rows.name}.tmp.77.1").write_bytes(b"half")
    kept = shard_files(out, (cut + 1) % 3).tensors.stat().st_mtime_ns
    assert merge_stores(sources, out).copied == 1
    assert shard_files(out, (cut + 1) % 3).tensors.stat().st_mtime_ns == kept
    collect_garbage(out)
    assert _tree(out) == _tree(tmp_path / "whole")


def test_an_incomplete_source_is_refused_unless_that_is_allowed(tmp_path):
    sources = [_store(tmp_path / "x", ["ab", "c"]), _store(tmp_path / "y", ["d"], batch=4)]
    shard_files(sources[0], 0).commit.unlink()
    with pytest.raises(ValueError, match=r"x: expected all 2 shards to be committed, got 1.*--allow-incomplete"):
        merge_stores(sources, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    merge_stores(sources, tmp_path / "out", allow_incomplete=True)
    assert TokenStore(tmp_path / "out").keys == ["c", "d"] and verify_store(tmp_path / "out") == {}
    merged = json.loads((tmp_path / "out/dataset.json").read_text())["merged_from"]
    assert [entry["num_shards"] for entry in merged] == [1, 1]


def test_a_source_that_has_grown_is_another_plan(tmp_path):
    source = _store(tmp_path / "x", ["ab", "c"])
    commit = shard_files(source, 1).commit
    commit.rename(tmp_path / "hidden")
    merge_stores([source], tmp_path / "out", allow_incomplete=True)
    (tmp_path / "hidden").rename(commit)
    with pytest.raises(ValueError, match="out was made by another plan: content_sha256"):
        merge_stores([source], tmp_path / "out")


def test_keys_that_two_stores_have_are_refused_by_name(tmp_path):
    sources = [_store(tmp_path / "x", ["abc", "de"]), _store(tmp_path / "y", ["d", "xc"])]
    with pytest.raises(ValueError, match="every key once.*got 'c', 'd' several times"):
        merge_stores(sources, tmp_path / "out")
    with pytest.raises(ValueError, match="got 'a', 'b', 'c', 'd', 'e' several"):
        merge_stores([sources[0], sources[0]], tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"tokenizer": "other", "fingerprint": "e" * 64}, "y: .*x, made ffffffffffffffff, got other eeeeeeeeeeeeeeee"),
        ({"columns": {"indices": "int32"}}, "y: expected the columns of .*x.*uint16.*int32"),
        ({"fields": ()}, r"y/shards/00000.parquet.*tag: timestamp\[ns\] there, none here"),
        ({"fields": (pa.field("tag", pa.int8()),)}, r"tag: timestamp\[ns\] there, int8 here"),
        ({"fields": (pa.field("more", pa.int8()), TAG)}, "more: none there, int8 here"),
    ],
)
def test_stores_that_do_not_go_together_are_refused_by_what_differs(tmp_path, changes, said):
    sources = [_store(tmp_path / "x", ["ab"]), _store(tmp_path / "y", ["d"], **changes)]
    with pytest.raises(ValueError, match=said):
        merge_stores(sources, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_damaged_shard_is_not_given_a_new_record(tmp_path):
    sources = [_store(tmp_path / "x", ["ab"]), _store(tmp_path / "y", ["d"])]
    file = shard_files(sources[1], 0).tensors
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"y/shards/00000.safetensors.*commit record.*verify"):
        merge_stores(sources, tmp_path / "out")
    assert [*(tmp_path / "out/commits").iterdir()] == [shard_files(tmp_path / "out", 0).commit]


def test_folders_that_cannot_be_the_new_store_are_refused(tmp_path):
    source = _store(tmp_path / "x", ["ab"])
    for out in (source, source / "new", tmp_path, source / "../x/y"):
        with pytest.raises(ValueError, match="apart from"):
            merge_stores([source], out)
    with pytest.raises(ValueError, match="memory://out: expected a local folder, got a URL"):
        merge_stores([source], "memory://out")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/mine.txt").write_text("mine")
    with pytest.raises(ValueError, match="full: expected a new or empty folder or a token store, got other files"):
        merge_stores([source], tmp_path / "full")
    with pytest.raises(ValueError, match="got a file"):
        merge_stores([source], tmp_path / "full/mine.txt")
    with pytest.raises(ValueError, match="was made by another plan"):
        merge_stores([source], _store(tmp_path / "y", ["d"]))
    with pytest.raises(FileNotFoundError, match="full: expected a token store"):
        merge_stores([source, tmp_path / "full"], tmp_path / "out")
    with pytest.raises(ValueError, match="at least one store"):
        merge_stores([], tmp_path / "out")
    newer = json.loads((source / "dataset.json").read_text()) | {"version": 2}
    (source / "dataset.json").write_text(json.dumps(newer))
    with pytest.raises(ValueError, match="expected version 1, got 2; update vistok"):
        merge_stores([source], tmp_path / "out")


def test_stores_without_shards_merge_to_one_without(tmp_path):
    merge_stores([_store(tmp_path / "x", []), _store(tmp_path / "y", [])], tmp_path / "out")
    assert len(TokenStore(tmp_path / "out")) == 0 and verify_store(tmp_path / "out") == {}
