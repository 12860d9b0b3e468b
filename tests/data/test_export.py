import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from vistok.data.encode import encode_folder
from vistok.data.export import export_store, tar_key
from vistok.data.plan import EncodeSettings
from vistok.data.shard import ROW_SCHEMA, Sample, shard_files, write_shard
from vistok.data.store import TokenStore
from vistok.rows import grid_coords
from vistok.tokens import TokenSpec

FORMATS = ("parquet", "datasets", "webdataset")
FIELDS = (
    pa.field("taken", pa.timestamp("us")),
    pa.field("raw", pa.binary()),
    pa.field("tags", pa.list_(pa.string())),
    pa.field("box", pa.struct([("x", pa.float32())])),
)


def _pruned_store(root: Path) -> Path:
    """Two shards of two books: whole grids in the one, pruned tokens with scores and source in the other."""
    dataset = {"format": "vistok-store", "version": 1, "plan_hash": "p", "num_shards": 2, "tokenizer": "made"}
    dataset |= {"fingerprint": "f" * 64, "columns": {"indices": "int32", "embeds": "bfloat16"}}
    root.mkdir()
    (root / "dataset.json").write_text(json.dumps(dataset))
    generator = torch.Generator().manual_seed(0)
    for shard, keep in enumerate([torch.arange(6), torch.tensor([1, 4])]):
        samples = []
        for name in ("a.b/../x.jpg", "a.b/../x.png", "/é ä%2E.tar.gz"):
            columns = {
                "indices": torch.randint(70000, (6, 2), generator=generator, dtype=torch.int32)[keep],
                "embeds": torch.randn(6, 3, generator=generator).bfloat16()[keep],
                "coords": grid_coords(2, 3)[0].to(torch.int16)[keep],
            }
            if shard:
                columns |= {"scores": torch.rand(2, generator=generator).half(), "source": keep.to(torch.int32)}
            row = {
                "key": f"{name}{shard}",
                "source": name,
                "caption": "a <b> \n",
                "raw": b"\xff\0",
                "tags": ["q", None],
            }
            row |= {"taken": 10**15 + 1, "box": {"x": 0.5}, "width": 30, "height": 20}
            samples.append(Sample(row, TokenSpec("made", 3, (70000, 70000), (2, 3), 8, (16, 24)), columns))
        header = {"tokenizer": "made", "fingerprint": "f" * 64}
        write_shard(root, shard, samples, [], header=header, plan_hash="p", schema=pa.schema([*ROW_SCHEMA, *FIELDS]))
    return root


@pytest.fixture
def pruned(tmp_path) -> TokenStore:
    return TokenStore(_pruned_store(tmp_path / "pruned"))


def _check_samples(found: list[dict], store: TokenStore, *, pruned: bool) -> None:
    """Exported samples, whose values are lists, against what the store's own reader gives."""
    assert [sample["key"] for sample in found] == store.keys
    for sample, item in zip(found, store, strict=True):
        for name, value in item.token_tensors().items():
            if name == "coords" and not pruned:  # the grid tells them
                assert "coords" not in sample
                continue
            exported = sample[f"token_{name}" if name == "source" else name]
            assert torch.equal(torch.tensor(np.array(exported)).to(value.dtype).reshape(value[0].shape), value[0])


def _rows(store: TokenStore) -> pa.Table:
    return pa.concat_tables(store.rows.table(slot) for slot in range(len(store.shards)))


def test_parquet_holds_the_rows_and_lists_of_ids(store, tmp_path):
    assert export_store(store.path, tmp_path / "out", "parquet") == 9
    assert sorted(os.listdir(tmp_path / "out")) == [f"data-{number:05d}-of-00003.parquet" for number in range(3)]
    table = pq.read_table(tmp_path / "out")
    assert table.schema.field("indices").type.value_type == pa.uint16()
    assert table.column_names == [*_rows(store).column_names, "indices"]  # the grid tells the coords
    assert table.drop_columns(["indices"]).cast(_rows(store).schema).equals(_rows(store))
    for ids, item in zip(table["indices"], store, strict=True):
        assert ids.as_py() == item.indices[0].tolist()
    about = json.loads(table.schema.metadata[b"vistok"])
    assert about["fingerprint"] == store.fingerprint and about["header"]["codebook_sizes"] == "[64000]"


def test_parquet_holds_every_column_of_pruned_tokens(pruned, tmp_path):
    export_store(pruned.path, tmp_path / "out", "parquet")
    table = pq.read_table(tmp_path / "out")
    assert table.schema.field("indices").type.value_type.value_type == pa.int32()
    assert table.schema.field("embeds").type.value_type.value_type == pa.float32()  # Arrow has no bfloat16
    assert table.schema.field("coords").type.value_type.value_type == pa.int16()
    assert table["scores"].to_pylist()[:3] == [None] * 3  # in shard 1 only
    assert table["source"].to_pylist() == _rows(pruned)["source"].to_pylist()
    _check_samples(table.to_pylist(), pruned, pruned=True)
    for name in ("taken", "raw", "tags", "box", "caption"):
        assert table[name].to_pylist() == _rows(pruned)[name].to_pylist()


@pytest.mark.parametrize("dtype", ["float16", "float32", "bfloat16"])
def test_parquet_holds_embeds(continuous, photos, tmp_path, dtype):
    encode_folder(continuous, photos, tmp_path / "s", EncodeSettings(threads=1, embeds_dtype=dtype))
    export_store(tmp_path / "s", tmp_path / "out", "parquet")
    table = pq.read_table(tmp_path / "out")
    kind = pa.float16() if dtype == "float16" else pa.float32()
    assert table.schema.field("embeds").type.value_type == pa.list_(pa.field("element", kind), continuous.spec.dim)
    _check_samples(table.to_pylist(), TokenStore(tmp_path / "s"), pruned=False)


def test_datasets_loads_what_was_exported(store, pruned, tmp_path):
    import datasets

    for source in (store, pruned):
        out = tmp_path / f"out of {source.path.name}"
        export_store(source.path, out, "datasets")
        loaded = datasets.load_from_disk(str(out))
        rows = _rows(source).to_pylist()
        found = [loaded[number] for number in range(len(loaded))]
        _check_samples(found, source, pruned=source is pruned)
        assert [{name: sample[name] for name in rows[0]} for sample in found] == rows
        assert sorted(path.suffix for path in out.iterdir()) == [".arrow"] * len(source.shards) + [".json"] * 2
    assert str(loaded.features["indices"].feature.feature.dtype) == "int32"


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # it leaves its tars open
def test_webdataset_reads_what_was_exported(store, pruned, tmp_path):
    import webdataset

    for source in (store, pruned):
        out = tmp_path / f"out of {source.path.name}"
        export_store(source.path, out, "webdataset")
        urls = [str(path) for path in sorted(out.iterdir())]
        found = [*webdataset.WebDataset(urls, shardshuffle=False).decode()]
        assert [sample["__key__"] for sample in found] == [tar_key(key) for key in source.keys]
        _check_samples(
            [
                sample["json"]
                | {"indices": sample["ids.npy"], "token_source": sample.get("source.npy")}
                | {name.removesuffix(".npy"): value for name, value in sample.items() if name[:5] in ("embed", "coord")}
                | {"scores": sample.get("scores.npy")}
                for sample in found
            ],
            source,
            pruned=source is pruned,
        )
    row = found[0]["json"]
    assert (row["caption"], row["raw"], row["taken"]) == ("a <b> \n", "/wA=", "2001-09-09T01:46:40.000001")
    assert row["tags"] == ["q", None] and row["box"] == {"x": 0.5} and row["grid"] == [2, 3]
    assert found[0]["ids.npy"].dtype == np.int32 and found[0]["embeds.npy"].dtype == np.float32


def test_tars_are_the_same_bytes_every_time_and_safe_to_unpack(pruned, tmp_path):
    for name in ("one", "two"):
        export_store(pruned.path, tmp_path / name, "webdataset")
    for number in range(2):
        tars = [tmp_path / name / f"data-{number:05d}.tar" for name in ("one", "two")]
        assert tars[0].read_bytes() == tars[1].read_bytes()
        with tarfile.open(tars[0]) as tar:
            members = tar.getmembers()
            tar.extractall(tmp_path / f"unpacked{number}", filter="data")
        assert {(member.mtime, member.uid, member.gid, member.isfile()) for member in members} == {(0, 0, 0, True)}
        assert not any(part in ("..", "") for member in members for part in member.name.split("/"))


def test_names_in_a_tar_tell_all_keys_apart():
    keys = ["a.jpg", "a.png", "a%2Ejpg", "a_jpg", "s/a", "s.a", "/a", "a", "a/", "a//b", "a/b", "..", "ä", "a b", "%"]
    names = [tar_key(key) for key in keys]
    assert len({*names}) == len(keys)
    assert tar_key("folder/p 1.jpg") == "folder/p 1%2Ejpg"
    assert not any("." in name or name.startswith("/") or name.endswith("/") or "//" in name for name in names)


@pytest.mark.parametrize("to", FORMATS)
def test_what_is_there_is_never_overwritten(store, tmp_path, to):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name in ("file", "folder", "link"):
        with pytest.raises(FileExistsError, match=f"{name}: exists"):
            export_store(store.path, tmp_path / name, to)
    for out in (store.path, store.path / "out"):
        with pytest.raises(ValueError, match="apart from"):
            export_store(store.path, out, to)
    with pytest.raises(ValueError, match="memory://out: expected a local folder, got a URL"):
        export_store(store.path, "memory://out", to)
    assert (tmp_path / "file").read_text() == "mine" and not any((tmp_path / "folder").iterdir())


@pytest.mark.parametrize("to", FORMATS)
def test_an_export_that_fails_leaves_nothing(store, tmp_path, to):
    file = shard_files(store.path, 2).tensors
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    before = {*tmp_path.rglob("*")}
    with pytest.raises(ValueError, match=r"00002.safetensors: sha256.*verify"):
        export_store(store.path, tmp_path / "out", to)
    assert {*tmp_path.rglob("*")} == before


def _run(script: str, folder: Path, **env: str) -> int:
    env = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "XDG_"))} | env
    env |= {"PYTHONPATH": str(Path(__file__).parents[2]), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run([sys.executable, "-c", script], cwd=folder, env=env, capture_output=True).returncode


@pytest.mark.slow
def test_an_export_that_is_killed_leaves_nothing_under_the_name_of_the_result(encoded, tmp_path):
    script = f"""
import os
from vistok.data.export import export_store
os.fsync = lambda file: os._exit(9)
export_store({str(encoded)!r}, "out", "parquet")
"""
    assert _run(script, tmp_path) == 9
    assert not (tmp_path / "out").exists() and [path.name[:8] for path in tmp_path.iterdir()] == ["out.tmp."]
    export_store(encoded, tmp_path / "out", "parquet")


@pytest.mark.slow
def test_nothing_is_written_outside_the_target(encoded, tmp_path):
    shutil.copytree(encoded, tmp_path / "store")
    for name in ("home", "tmp", "here"):
        (tmp_path / name).mkdir()
    before = {*(tmp_path / "store").rglob("*")}
    script = f"""
from vistok.data.export import export_store
for to in {FORMATS}:
    export_store("../store", "../" + to, to)
"""
    assert _run(script, tmp_path / "here", HOME=str(tmp_path / "home"), TMPDIR=str(tmp_path / "tmp")) == 0
    assert sorted(os.listdir(tmp_path)) == sorted(["here", "home", "store", "tmp", *FORMATS])
    assert {*(tmp_path / "store").rglob("*")} == before
    for name in ("home", "tmp", "here"):
        assert [*(tmp_path / name).rglob("*")] == []


@pytest.mark.parametrize("to", FORMATS)
def test_incomplete_stores_are_refused_unless_that_is_allowed(store, tmp_path, to):
    shard_files(store.path, 0).commit.unlink()
    with pytest.raises(ValueError, match="all 3 shards to be committed, got 2"):
        export_store(store.path, tmp_path / "out", to)
    assert export_store(store.path, tmp_path / "out", to, allow_incomplete=True) == 5
    for shard in (1, 2):
        shard_files(store.path, shard).commit.unlink()
    with pytest.raises(ValueError, match="a committed shard to export, got none"):
        export_store(store.path, tmp_path / "none", to, allow_incomplete=True)


def test_a_shard_in_which_all_failed_is_exported_empty(tmp_path):
    root = _pruned_store(tmp_path / "s")
    schema = pa.schema([*ROW_SCHEMA, *FIELDS])
    write_shard(root, 0, [], [], header={"tokenizer": "made", "fingerprint": "f" * 64}, plan_hash="p", schema=schema)
    for to in FORMATS:
        assert export_store(root, tmp_path / to, to) == 3
    assert len(pq.read_table(tmp_path / "parquet")) == 3


def test_another_format_is_refused_by_name(store, tmp_path):
    with pytest.raises(ValueError, match="expected a format out of parquet, datasets, webdataset, got 'csv'"):
        export_store(store.path, tmp_path / "out", "csv")
