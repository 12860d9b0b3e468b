import hashlib
import json
import pickle
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from torch.utils.data import DataLoader

from vistok.data.encode import encode_folder
from vistok.data.plan import EncodeSettings
from vistok.data.shard import Sample, read_commit, shard_files, stored_columns, write_shard
from vistok.data.store import TokenStore
from vistok.data.verify import verify_store
from vistok.rows import grid_coords
from vistok.tokens import TokenSpec, TokenTensor


def _write(root: Path, shards: list[list[TokenTensor]], columns: dict[str, str]) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    dataset = {"format": "vistok-store", "version": 1, "plan_hash": "h", "num_shards": len(shards)}
    dataset |= {"tokenizer": "made", "fingerprint": "f", "columns": columns}
    (root / "dataset.json").write_text(json.dumps(dataset))
    for shard, items in enumerate(shards):
        samples = [
            Sample({"key": f"{shard}/{i}"}, item.spec, stored_columns(item, columns)) for i, item in enumerate(items)
        ]
        write_shard(root, shard, samples, [], header={"tokenizer": "made", "fingerprint": "f"}, plan_hash="h")
    return root


def _assert_same(read: TokenTensor, written: TokenTensor) -> None:
    written = written.trim()
    assert read.spec == written.spec
    assert read.tensors().keys() == written.tensors().keys()
    for name, value in read.check().tensors().items():
        expected = written.tensors()[name]
        assert value.dtype == expected.dtype
        # float16 in the store
        assert torch.equal(value, expected.half().float() if name in ("embeds", "scores") else expected)


def _grid_item(rows: int, cols: int, seed: int = 0, sizes: tuple[int, ...] = (500,)) -> TokenTensor:
    generator = torch.Generator().manual_seed(seed)
    spec = TokenSpec("made", 0, sizes, (rows, cols), 8, (rows * 8 - 3, cols * 8))
    ids = torch.stack([torch.randint(size, (1, rows * cols), generator=generator) for size in sizes], -1)
    return TokenTensor(spec, indices=ids[..., 0] if len(sizes) == 1 else ids, coords=grid_coords(rows, cols))


@settings(max_examples=25, deadline=None)
@given(
    lengths=st.lists(st.lists(st.integers(0, 12), max_size=4), min_size=1, max_size=3),
    width=st.integers(1, 5),
    books=st.integers(1, 3),
    seed=st.integers(0, 1000),
)
def test_every_field_of_ragged_samples_comes_back(lengths, width, books, seed):
    generator = torch.Generator().manual_seed(seed)

    def item(count: int) -> TokenTensor:
        spec = TokenSpec("made", width, (700,) * books, (1 + count, 3), 4, (9, 11), 1, "causal-1d", 32)
        ids = torch.randint(700, (1, count, books), generator=generator)
        return TokenTensor(
            spec,
            embeds=torch.randn(1, count, width, generator=generator),
            indices=ids[..., 0] if books == 1 else ids,
            coords=torch.randint(99, (1, count, 2), generator=generator, dtype=torch.int32),
            scores=torch.randn(1, count, generator=generator),
            source=torch.randint(10**6, (1, count), generator=generator),
            sizes=torch.rand(1, count, generator=generator) * 9,
        )

    shards = [[item(count) for count in counts] for counts in lengths]
    with TemporaryDirectory() as folder:
        root = _write(Path(folder) / "s", shards, {"indices": "uint16", "embeds": "float16"})
        store = TokenStore(root)
        written = [one for shard in shards for one in shard]
        assert len(store) == len(written) and len(store.keys) == len(written)
        for read, one in zip(store, written, strict=True):
            _assert_same(read, one)
        assert verify_store(root) == {}


@pytest.mark.parametrize(("dtype", "size"), [("uint16", 65536), ("int32", 65537)])
def test_the_highest_id_of_a_codebook_survives(tmp_path, dtype, size):
    spec = TokenSpec("made", 0, (size,), (1, 2), 8, (8, 16))
    item = TokenTensor(spec, indices=torch.tensor([[0, size - 1]]))
    store = TokenStore(_write(tmp_path / "s", [[item]], {"indices": dtype}))
    assert store[0].indices.tolist() == [[0, size - 1]]
    with safe_open(shard_files(store.path, 0).tensors, "pt") as file:
        assert file.get_tensor("indices.values").dtype == getattr(torch, dtype)


def test_ids_that_do_not_fit_are_refused_by_name():
    item = TokenTensor(TokenSpec("made"), indices=torch.tensor([[0, 65536]]))
    with pytest.raises(ValueError, match="indices: expected values that fit uint16, got 0..65536"):
        stored_columns(item, {"indices": "uint16"})


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e6])
def test_numbers_that_are_not_finite_in_the_store_are_refused(bad):
    item = TokenTensor(TokenSpec("made", 1), embeds=torch.tensor([[[0.0], [bad]]]))
    with pytest.raises(ValueError, match="embeds: expected finite values that fit float16"):
        stored_columns(item, {"embeds": "float16"})


def test_padding_never_reaches_the_store():
    item = TokenTensor(
        TokenSpec("made", 1),
        indices=torch.tensor([[4, 7, -1]]),
        embeds=torch.tensor([[[1.0], [2.0], [float("nan")]]]),
        lengths=torch.tensor([2]),
    )
    columns = stored_columns(item, {"indices": "uint16", "embeds": "float16"})
    assert columns["indices"].tolist() == [4, 7] and columns["embeds"].tolist() == [[1.0], [2.0]]


def test_coords_of_a_whole_grid_take_no_space_and_come_back(tmp_path):
    items = [_grid_item(3, 4), _grid_item(2, 2)]
    root = _write(tmp_path / "s", [items], {"indices": "uint16"})
    with safe_open(shard_files(root, 0).tensors, "pt") as file:
        assert sorted(file.keys()) == ["indices.offsets", "indices.values"]
    for read, written in zip(TokenStore(root), items, strict=True):
        _assert_same(read, written)


def test_pruned_tokens_keep_their_place_beside_whole_ones(tmp_path):
    whole = _grid_item(3, 4)
    whole = whole.replace(source=torch.arange(12)[None])
    pruned = whole.keep(torch.arange(12)[None] % 3 == 1)
    root = _write(tmp_path / "s", [[whole, pruned]], {"indices": "uint16"})
    store = TokenStore(root)
    _assert_same(store[0], whole)
    _assert_same(store[1], pruned)
    assert store[1].source.tolist() == [[1, 4, 7, 10]] and store[1].coords.tolist()[0][1] == [1, 0]
    with safe_open(shard_files(root, 0).tensors, "pt") as file:
        assert file.metadata()["coords.offsets_of"] == "indices"
        assert "coords.offsets" not in file.keys()  # noqa: SIM118


def test_samples_without_coords_get_none(tmp_path):
    item = _grid_item(2, 3).replace(coords=None)
    assert TokenStore(_write(tmp_path / "s", [[item]], {"indices": "uint16"}))[0].coords is None


def test_the_same_samples_give_the_same_bytes(tmp_path):
    items = [_grid_item(3, 4, seed).keep(torch.arange(12)[None] > seed) for seed in range(3)]
    files = [shard_files(_write(tmp_path / str(run), [items], {"indices": "uint16"}), 0) for run in range(4)]
    assert len({file.tensors.read_bytes() for file in files}) == 1
    assert len({file.rows.read_bytes() for file in files}) == 1


def test_the_commit_record_says_what_was_written(tmp_path):
    root = _write(tmp_path / "s", [[_grid_item(3, 4), _grid_item(1, 2)]], {"indices": "uint16"})
    record = read_commit(root, 0, "h")
    files = shard_files(root, 0)
    assert (record["shard"], record["n_samples"], record["n_tokens"], record["n_errors"]) == (0, 2, 14, 0)
    assert record["bytes"] == files.tensors.stat().st_size + files.rows.stat().st_size
    assert record["sha256"] == {
        file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in (files.tensors, files.rows)
    }
    assert record["attempt"] == 1


def test_an_attempt_counts_the_ones_that_were_killed(tmp_path):
    root = _write(tmp_path / "s", [[_grid_item(1, 2)]], {"indices": "uint16"})
    (root / "shards/00000.parquet.tmp.77.4").write_bytes(b"half")
    _write(root, [[_grid_item(1, 2)]], {"indices": "uint16"})
    assert read_commit(root, 0, "h")["attempt"] == 5


def test_only_committed_shards_of_this_plan_are_read(tmp_path):
    items = [[_grid_item(1, 2, seed)] for seed in range(3)]
    root = _write(tmp_path / "s", items, {"indices": "uint16"})
    shard_files(root, 0).commit.unlink()
    record = read_commit(root, 1, "h") | {"plan_hash": "another"}
    shard_files(root, 1).commit.write_text(json.dumps(record))
    store = TokenStore(root)
    assert store.keys == ["2/0"]
    _assert_same(store[0], items[2][0])


def test_a_shard_of_unlike_samples_is_refused_by_key(tmp_path):
    one, other = _grid_item(1, 2), _grid_item(1, 2, sizes=(500, 500))
    with pytest.raises(ValueError, match="0/1: expected columns"):
        _write(tmp_path / "s", [[one, other]], {"indices": "uint16"})


def test_samples_are_found_by_every_kind_of_index(store):
    all_items = list(store)
    assert len(store) == len(all_items) == 9
    _assert_same(store[-1], all_items[8])
    _assert_same(store[torch.tensor(5)], all_items[5])
    for index in ([0, 3, 6], torch.tensor([0, 3, 6]), torch.tensor([0, 3, 6]).numpy(), slice(0, 9, 3), range(0, 7, 3)):
        together = store[index]  # one size, three shards
        _assert_same(together, TokenTensor.cat([all_items[i] for i in (0, 3, 6)]))
    mixed = store[[1, 0]]
    assert isinstance(mixed, list)
    _assert_same(mixed[0], all_items[1])
    assert store[[]] == []


@pytest.mark.parametrize("index", [9, -10, [0, 9]])
def test_an_index_out_of_range_is_an_error_that_says_how_many_there_are(store, index):
    with pytest.raises(IndexError, match="below 9"):
        store[index]


def test_a_mask_is_not_taken_for_indices(store):
    with pytest.raises(TypeError, match="bool mask"):
        store[torch.ones(9, dtype=torch.bool)]


def test_rows_hold_the_metadata_of_each_sample(store):
    row = store.rows[8]
    assert len(row["digest"]) == 32 and row["digest"] != store.rows[7]["digest"]
    assert {name: value for name, value in row.items() if name != "digest"} == {
        "key": "sub/p8.png",
        "source": "sub/p8.png",
        "source_offset": 0,
        "width": 37,
        "height": 22,
        "crop": None,
        "image_size": [22, 37],
        "grid": [6, 10],
        "n_tokens": 60,
        "caption": None,
    }
    assert store.keys[0] == "p0.png"


def test_writing_to_a_sample_does_not_reach_the_store(continuous, photos, tmp_path):
    encode_folder(continuous, photos, tmp_path / "s", EncodeSettings(threads=1, embeds_dtype="float32"))
    store = TokenStore(tmp_path / "s")
    before = store[0].embeds.clone()
    store[0].embeds.fill_(7.0)
    assert torch.equal(store[0].embeds, before)


def test_a_store_pickles_as_its_path_and_keeps_its_length(store):
    list(store)
    pickled = pickle.dumps(store)
    assert len(pickled) < 1000
    shard_files(store.path, 0).commit.rename(store.path / "hidden")
    fewer = pickle.dumps(TokenStore(store.path))
    (store.path / "hidden").rename(shard_files(store.path, 0).commit)
    assert len(pickle.loads(pickled)) == 9 and len(pickle.loads(fewer)) == 5


def test_data_loader_workers_read_the_same_batches(store):
    same_size = [0, 3, 6]
    loader = DataLoader(torch.utils.data.Subset(store, same_size), batch_size=2, num_workers=2)
    batches = list(loader)
    assert [len(batch) for batch in batches] == [2, 1]
    _assert_same(TokenTensor.cat(batches), store[same_size])


def test_a_data_loader_reads_each_batch_at_once_in_the_order_of_its_sampler(store):
    order = [8, 0, 3, 3, 6]
    loader = DataLoader(store, sampler=order, batch_size=3, collate_fn=list)
    found = [item for batch in loader for item in batch]
    for read, at in zip(found, order, strict=True):
        _assert_same(read, store[at])
    for read, at in zip(store.__getitems__(order), order, strict=True):
        _assert_same(read, store[at])


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_worker_processes_open_the_files_themselves(store, context):
    expected = list(store)  # all files are open in this process
    loader = DataLoader(store, batch_size=None, num_workers=1, multiprocessing_context=context)
    for read, written in zip(loader, expected, strict=True):
        _assert_same(read, written)


def _prefix_store(root: Path, order: str) -> tuple[TokenStore, list[TokenTensor]]:
    generator = torch.Generator().manual_seed(0)
    spec = TokenSpec("made", 0, (500,), (8,), 8, (8, 8), order=order)
    lengths = [5, 0, 1, 8, 3]
    items = [TokenTensor(spec, indices=torch.randint(500, (1, count), generator=generator)) for count in lengths]
    _write(root, [items[:2], [], items[2:]], {"indices": "uint16"})
    return TokenStore(root), items


@pytest.mark.parametrize(
    ("budget", "lengths"),
    [
        (3, [3, 0, 1, 3, 3]),
        (100, [5, 0, 1, 8, 3]),
        (0.5, [2, 0, 1, 4, 2]),
        (1.0, [5, 0, 1, 8, 3]),
        (0.01, [1, 0, 1, 1, 1]),
    ],
)
@pytest.mark.parametrize("order", ["1d", "causal-1d"])
def test_a_budget_reads_the_first_tokens_of_each_sample(tmp_path, order, budget, lengths):
    whole, items = _prefix_store(tmp_path / "s", order)
    store = TokenStore(whole.path, budget=budget)
    assert store.lengths.tolist() == lengths and whole.lengths.tolist() == [item.num_slots for item in items]
    column = store.column("indices")
    for at, (item, length) in enumerate(zip(items, lengths, strict=True)):
        _assert_same(store[at], item.truncate(length))
        assert column[at].tolist() == item.indices[0, :length].tolist()
    expected = [code for item, length in zip(items, lengths, strict=True) for code in item.indices[0, :length].tolist()]
    gathered = column.gather(range(5))
    assert gathered.values.tolist() == expected and gathered.offsets.diff().tolist() == lengths
    scanned = list(column.scan())
    assert [code for values, _ in scanned for code in values.tolist()] == expected
    assert [count for _, offsets in scanned for count in torch.from_numpy(offsets).diff().tolist()] == lengths
    assert pickle.loads(pickle.dumps(store)).lengths.tolist() == lengths


def test_a_budget_counts_coords_of_whole_grids_too(tmp_path):
    item = _grid_item(2, 3)
    item = item.replace(spec=replace(item.spec, order="1d"))
    root = _write(tmp_path / "s", [[item]], {"indices": "uint16"})
    _assert_same(TokenStore(root, budget=4)[0], item.truncate(4))
    assert TokenStore(root, budget=4).column("coords")[0].tolist() == item.coords[0, :4].tolist()


def test_a_budget_of_tokens_in_another_order_is_refused_at_once(tmp_path):
    root = _write(tmp_path / "s", [[], [_grid_item(2, 3)]], {"indices": "uint16"})
    with pytest.raises(ValueError, match="00001.safetensors.*expected order 'causal-1d' or '1d', got 'raster'"):
        TokenStore(root, budget=3)


@pytest.mark.parametrize("budget", [0, -1, 0.0, 1.5, float("nan"), True, "4"])
def test_a_budget_that_is_none_is_refused(store, budget):
    with pytest.raises(ValueError, match=r"budget: expected tokens >= 1 \(int\) or a part in \(0, 1\]"):
        TokenStore(store.path, budget=budget)


def test_rows_are_made_when_they_are_asked_for(store):
    rows = store.rows
    assert len(rows) == 9 and rows[-1] == rows[8]
    assert [row["key"] for row in rows] == store.keys
    assert rows[2:7:2] == [rows[2], rows[4], rows[6]]
    assert rows.table(0).num_rows == 4
    for index in (9, -10):
        with pytest.raises(IndexError, match="below 9"):
            rows[index]


def test_columns_of_the_user_appear_in_the_rows(store):
    for shard in range(3):
        file = shard_files(store.path, shard).rows
        rows = pq.read_table(file)
        label = [[f"label of {key}"] for key in rows["key"].to_pylist()]
        pq.write_table(rows.append_column("labels", [label]), file)
    assert TokenStore(store.path).rows[5]["labels"] == ["label of p5.png"]


def test_a_folder_named_like_a_partition_adds_no_column(store):
    moved = store.path.rename(store.path.parent / "split=train")
    assert "split" not in TokenStore(moved).rows[0]


def test_a_commit_record_that_says_no_number_of_samples_is_refused(store):
    path = shard_files(store.path, 1).commit
    for content in ("{", "[]", "{}", None):
        record = read_commit(store.path, 2, store.dataset["plan_hash"]) | {"n_samples": -1}
        path.write_text(json.dumps(record) if content is None else content)
        if content == "{}":
            assert len(TokenStore(store.path)) == 5  # of no plan, or of another
            continue
        with pytest.raises(ValueError, match=r"commits/00001\.json: expected"):
            TokenStore(store.path)


def test_another_tokenizer_is_refused_with_both_names_and_fingerprints(store, other_weights, continuous):
    for other in (other_weights, continuous):
        with pytest.raises(ValueError, match=rf"vq_nano {store.fingerprint[:16]}.*got {other.name} [0-9a-f]{{16}}"):
            TokenStore(store.path, tokenizer=other)


def test_a_folder_that_is_no_store_is_an_error_that_says_so(tmp_path):
    with pytest.raises(FileNotFoundError, match="dataset.json"):
        TokenStore(tmp_path)
    (tmp_path / "dataset.json").write_text('{"format": "vistok-store", "version": 2}')
    with pytest.raises(ValueError, match="expected version 1, got 2"):
        TokenStore(tmp_path)
    for content in ('{"name": "coco"}', "[1]"):
        (tmp_path / "dataset.json").write_text(content)
        with pytest.raises(ValueError, match="something else"):
            TokenStore(tmp_path)
    (tmp_path / "dataset.json").write_text('{"format": "vistok-store", "version": 1, "plan_hash": "h"}')
    with pytest.raises(ValueError, match=r"expected 'num_shards' \(int\), got None"):
        TokenStore(tmp_path)
    dataset = {"plan_hash": "h", "num_shards": 10**12, "tokenizer": "made", "fingerprint": "f", "columns": {}}
    (tmp_path / "dataset.json").write_text(json.dumps({"format": "vistok-store", "version": 1, **dataset}))
    with pytest.raises(ValueError, match=r"expected num_shards in 0\.\.10000000, got 1000000000000"):
        TokenStore(tmp_path)
    for content in (b"{", b"\xff", b"[" * 100_000):
        (tmp_path / "dataset.json").write_bytes(content)
        with pytest.raises(ValueError, match=r"dataset\.json: expected JSON"):
            TokenStore(tmp_path)


def test_specs_survive_field_by_field(tmp_path):
    item = _grid_item(2, 3)
    for change in ({"tile": 64}, {"patch": 16}, {"image_size": ()}, {"prefix": 2}, {"order": "1d"}):
        changed = item.replace(spec=replace(item.spec, **change))
        assert (
            TokenStore(_write(tmp_path / next(iter(change)), [[changed]], {"indices": "uint16"}))[0].spec
            == changed.spec
        )


def test_rows_are_plain_parquet_that_anything_reads(store):
    table = pq.read_table(shard_files(store.path, 0).rows)
    assert table["n_tokens"].to_pylist() == [140, 64, 60, 140]
    assert pq.ParquetFile(shard_files(store.path, 0).rows).metadata.row_group(0).column(0).compression == "ZSTD"
