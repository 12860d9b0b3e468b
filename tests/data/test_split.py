import hashlib
import json
import os
import shutil
import string
from pathlib import Path

import pyarrow as pa
import pytest
import torch

from vistok.data.diff import diff_stores
from vistok.data.encode import encode_folder
from vistok.data.merge import merge_stores
from vistok.data.plan import EncodeSettings
from vistok.data.shard import ROW_SCHEMA, Sample, shard_files, write_shard
from vistok.data.split import part_of, split_store
from vistok.data.store import TokenStore
from vistok.data.verify import verify_store
from vistok.rows import grid_coords
from vistok.tokens import TokenSpec

PARTS = {"train": 0.6, "val": 0.3, "test": 0.1}
FIELDS = (pa.field("taken", pa.timestamp("ns")), pa.field("box", pa.struct([("x", pa.list_(pa.float16(), 2))])))


def _sample(key: str, *, keep: int | None = None, tile: int = 0) -> Sample:
    digest = hashlib.sha256(key.encode()).digest()
    rows = 1 + digest[0] % 4
    columns = {
        "indices": torch.tensor([*digest[: rows * 3]], dtype=torch.uint16)[:keep],
        "coords": grid_coords(rows, 3)[0].to(torch.int16)[:keep],
    }
    row = {"key": key, "digest": digest.hex()[:32], "taken": 10**18 + 1 + digest[1], "box": {"x": [0.5, digest[2]]}}
    return Sample(row, TokenSpec("made", 0, (256,), (rows, 3), 8, (rows * 8, 24), tile=tile), columns)


def _store(root: Path, shards: list[list[Sample]], *, failed=(), **changes) -> Path:
    """A store of two-sample shards; `failed`: keys of pictures of the first shard that failed."""
    dataset = {"format": "vistok-store", "version": 1, "plan_hash": f"plan of {root.name}", "num_shards": len(shards)}
    dataset |= {"tokenizer": "made", "fingerprint": "f" * 64, "columns": {"indices": "uint16"}, "shard_samples": 4}
    dataset |= {"fields": {field.name: str(field.type) for field in FIELDS}, "split": None} | changes
    root.mkdir(parents=True)
    (root / "dataset.json").write_text(json.dumps(dataset))
    for number, samples in enumerate(shards):
        errors = [{"key": key, "error": "ValueError", "message": "bad"} for key in failed] if number == 0 else []
        header = {"tokenizer": "made", "fingerprint": "f" * 64}
        schema = pa.schema([*ROW_SCHEMA, *FIELDS])
        write_shard(root, number, samples, errors, header=header, plan_hash=dataset["plan_hash"], schema=schema)
    return root


def _letters(root: Path, count: int = 26, *, failed=(), **changes) -> Path:
    keys = string.ascii_lowercase[:count]
    shards = [[_sample(key) for key in keys[at : at + 4]] for at in range(0, count, 4)]
    return _store(root, shards, failed=failed, **changes)


def _by_key(path: Path) -> dict[str, tuple]:
    store = TokenStore(path)
    tables = [pa.table(store.rows.table(slot)) for slot in range(len(store.shards))]
    rows = pa.concat_tables(tables).to_pylist() if tables else []
    return {
        row["key"]: (row, item.spec, item.indices.tolist(), item.coords.tolist())
        for row, item in zip(rows, store, strict=True)
    }


def test_every_sample_is_in_exactly_one_part_with_its_row_and_its_tokens(tmp_path):
    source = _letters(tmp_path / "s")
    summaries = split_store(source, tmp_path / "out", PARTS)
    parts = {name: _by_key(tmp_path / "out" / name) for name in PARTS}
    assert sum(map(len, parts.values())) == 26
    assert {key: value for part in parts.values() for key, value in part.items()} == _by_key(source)
    for name, part in parts.items():
        assert verify_store(tmp_path / "out" / name) == {}
        assert [*part] == sorted(part)  # in the order of the source
        assert summaries[name].samples == len(part)
        assert {part_of(key, 0, PARTS) for key in part} <= {name}


def test_token_bytes_are_those_of_the_source(continuous, photos, tmp_path):
    for dtype in ("bfloat16", "float32"):
        source = tmp_path / dtype
        encode_folder(continuous, photos, source, EncodeSettings(shard_samples=4, threads=1, embeds_dtype=dtype))
        split_store(source, tmp_path / f"{dtype}-parts", {"a": 0.5, "b": 0.5})
        whole = dict(zip(TokenStore(source).keys, TokenStore(source), strict=True))
        for name in "ab":
            part = TokenStore(tmp_path / f"{dtype}-parts" / name)
            assert part.dataset["columns"] == {"embeds": dtype} and 0 < len(part) < 9
            for key, item in zip(part.keys, part, strict=True):
                assert torch.equal(item.embeds, whole[key].embeds) and torch.equal(item.coords, whole[key].coords)


def test_a_key_stays_in_its_part_whatever_else_there_is(tmp_path):
    split_store(_letters(tmp_path / "small", 10), tmp_path / "a", PARTS)
    split_store(_letters(tmp_path / "grown", 26), tmp_path / "b", {name: PARTS[name] for name in reversed(PARTS)})
    for name in PARTS:
        small, grown = (TokenStore(tmp_path / out / name).keys for out in "ab")
        assert small == [key for key in grown if key < "k"]


def test_parts_have_about_their_fractions_and_follow_the_seed():
    keys = [f"folder/{number}.jpg" for number in range(4000)]
    drawn = {seed: [part_of(key, seed, PARTS) for key in keys] for seed in (0, 1)}
    for name, fraction in PARTS.items():
        # Four standard deviations of a binomial share.
        assert abs(drawn[0].count(name) / 4000 - fraction) < 4 * (fraction * (1 - fraction) / 4000) ** 0.5
    same = sum(one == other for one, other in zip(drawn[0], drawn[1], strict=True)) / 4000
    assert abs(same - sum(fraction**2 for fraction in PARTS.values())) < 0.04
    # Written out, because stores that are split already depend on it.
    assert " ".join(part_of(key, 7, PARTS) for key in "abcdefgh") == "val train val train val train train train"


def test_shards_are_filled_again_and_stay_in_order(tmp_path):
    split_store(_letters(tmp_path / "s"), tmp_path / "out", {"train": 0.5, "val": 0.5})
    for name in ("train", "val"):
        store = TokenStore(tmp_path / "out" / name)
        sizes = [record["n_samples"] for record in store.commits.values()]
        assert set(sizes[:-1]) == {4} and 1 <= sizes[-1] <= 4 and store.dataset["num_shards"] == len(sizes)


def test_failed_samples_go_where_they_would_have_gone(tmp_path):
    failed = [f"bad{number}" for number in range(20)]
    split_store(_letters(tmp_path / "s", failed=failed), tmp_path / "out", PARTS)
    found = {}
    for name in PARTS:
        for file in sorted((tmp_path / "out" / name / "errors").glob("*")):
            found |= {json.loads(line)["key"]: name for line in file.read_text().splitlines()}
        assert verify_store(tmp_path / "out" / name) == {}
    assert found == {key: part_of(key, 0, PARTS) for key in failed}


def test_failed_samples_are_kept_by_a_part_that_has_no_other(tmp_path):
    parts = {"most": 1 - 1e-3, "rare": 1e-3}
    key = next(key for key in map(str, range(10**5)) if part_of(key, 0, parts) == "rare")
    summaries = split_store(_letters(tmp_path / "s", 4, failed=[key]), tmp_path / "out", parts)
    assert (summaries["rare"].samples, summaries["rare"].errors, summaries["rare"].shards) == (0, 1, 1)
    assert verify_store(tmp_path / "out/rare") == {} and len(TokenStore(tmp_path / "out/rare")) == 0


def test_the_parts_say_what_they_are(tmp_path):
    split_store(_letters(tmp_path / "s", batch=8), tmp_path / "out", PARTS, seed=3)
    for name in PARTS:
        dataset = json.loads((tmp_path / "out" / name / "dataset.json").read_text())
        assert dataset["split"] == name and dataset["batch"] == 8 and dataset["fingerprint"] == "f" * 64
        assert dataset["split_from"] == {"plan_hash": "plan of s", "parts": PARTS, "seed": 3, "split": None}


def test_pruned_and_whole_samples_share_a_shard_and_unlike_ones_do_not(tmp_path):
    shards = [[_sample("a"), _sample("b", keep=2)], [_sample("c")], [_sample("d", tile=32)]]
    source = _store(tmp_path / "s", shards)
    split_store(source, tmp_path / "out", {"all": 1.0})
    store = TokenStore(tmp_path / "out/all")
    assert [record["n_samples"] for record in store.commits.values()] == [3, 1]
    assert _by_key(tmp_path / "out/all") == _by_key(source)
    assert verify_store(tmp_path / "out/all") == {}


def test_the_parts_of_a_merged_store_know_their_plans(tmp_path):
    sources = [_letters(tmp_path / "x", 10, batch=8), _store(tmp_path / "y", [[_sample("zz"), _sample("yy")]], batch=4)]
    merge_stores(sources, tmp_path / "m")
    split_store(tmp_path / "m", tmp_path / "out", {"all": 1.0})
    merged = json.loads((tmp_path / "out/all/dataset.json").read_text())["merged_from"]
    assert [(entry["plan_hash"], entry["num_shards"]) for entry in merged] == [("plan of x", 3), ("plan of y", 1)]
    assert diff_stores(tmp_path / "m", tmp_path / "out/all").same


class _Killed(BaseException):
    pass


def test_a_split_that_is_cut_off_at_any_write_goes_on_to_the_same_bytes(tmp_path, monkeypatch):
    source = _letters(tmp_path / "s", 5, failed=["bad1", "bad2"])
    parts = {"a": 0.5, "b": 0.5}
    moves = []
    move = os.replace

    def counted(*paths):
        moves.append(paths)
        if len(moves) == cut:
            raise _Killed
        move(*paths)

    def files(root: Path) -> dict[str, bytes]:
        paths = [*root.rglob("*.safetensors"), *root.rglob("*.parquet"), *root.rglob("*.jsonl")]
        return {path.relative_to(root).as_posix(): path.read_bytes() for path in paths}

    cut = 0
    monkeypatch.setattr(os, "replace", counted)
    split_store(source, tmp_path / "whole", parts)
    for cut in range(1, len(moves) + 1):
        moves.clear()
        out = tmp_path / f"out{cut}"
        with pytest.raises(_Killed):
            split_store(source, out, parts)
        cut = 0
        split_store(source, out, parts)
        assert files(out) == files(tmp_path / "whole")
        assert all(verify_store(out / name) == {} for name in parts)


def test_what_is_done_is_not_done_again(tmp_path):
    source = _letters(tmp_path / "s")
    first = split_store(source, tmp_path / "out", PARTS)
    shard_files(tmp_path / "out/train", 0).commit.unlink()
    again = split_store(source, tmp_path / "out", PARTS)
    assert first["train"].written == first["train"].shards and again["train"].written == 1
    assert again["val"].written == again["test"].written == 0


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ({"a": 0.5, "b": 0.4}, "add up to 1, got .* with sum 0.9"),
        ({"a": 0.9, "b": 0.2}, "add up to 1, got .* with sum 1.1"),
        ({}, "add up to 1"),
        ({"a": 1.5, "b": -0.5}, "fraction in .0, 1. for a, got 1.5"),
        ({"a": 1.0, "b": 0.0}, "for b, got 0.0"),
        ({"a": float("nan")}, "for a, got nan"),
        ({"../a": 1.0}, "name of a folder for a part.*'../a'"),
        ({"": 1.0}, "name of a folder"),
        ({".": 1.0}, "name of a folder"),
        ({"a\0": 1.0}, "name of a folder"),
    ],
)
def test_parts_that_are_no_parts_are_refused(tmp_path, parts, said):
    with pytest.raises(ValueError, match=said):
        split_store(_letters(tmp_path / "s", 4), tmp_path / "out", parts)
    assert not (tmp_path / "out").exists()


def test_thirds_add_up():
    assert part_of("a", 0, dict.fromkeys("xyz", 1 / 3)) in "xyz"


def test_folders_that_cannot_be_the_parts_are_refused(tmp_path):
    source = _letters(tmp_path / "s", 4)
    for out in (source, source / "parts"):
        with pytest.raises(ValueError, match="apart from"):
            split_store(source, out, PARTS)
    with pytest.raises(ValueError, match="memory://out: expected a local folder, got a URL"):
        split_store(source, "memory://out", PARTS)
    (tmp_path / "full").mkdir()
    (tmp_path / "full/mine.txt").write_text("mine")
    with pytest.raises(ValueError, match="full: expected a new or empty folder, or these parts, got mine.txt"):
        split_store(source, tmp_path / "full", PARTS)
    with pytest.raises(ValueError, match="got a file"):
        split_store(source, tmp_path / "full/mine.txt", PARTS)
    split_store(source, tmp_path / "out", PARTS)
    with pytest.raises(ValueError, match="was made by another plan"):
        split_store(source, tmp_path / "out", PARTS, seed=1)
    with pytest.raises(FileNotFoundError, match="expected a token store"):
        split_store(tmp_path / "full", tmp_path / "new", PARTS)


def test_damaged_and_incomplete_sources_are_refused(tmp_path):
    source = _letters(tmp_path / "s", 10)
    damaged = shutil.copytree(source, tmp_path / "damaged")
    file = shard_files(damaged, 1).tensors
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"damaged: 00001.safetensors: sha256.*verify"):
        split_store(damaged, tmp_path / "out", PARTS)
    shard_files(source, 1).commit.unlink()
    with pytest.raises(ValueError, match="all 3 shards to be committed, got 2"):
        split_store(source, tmp_path / "out", PARTS)
    assert not (tmp_path / "out").exists()
    split_store(source, tmp_path / "out", {"all": 1.0}, allow_incomplete=True)
    assert "".join(TokenStore(tmp_path / "out/all").keys) == "abcdij"
