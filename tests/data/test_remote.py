import json
import pickle

import fsspec
import numpy as np
import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem
from torch.utils.data import DataLoader

from vistok.data.shard import Sample, shard_files, stored_columns, write_shard
from vistok.data.store import TokenStore
from vistok.rows import grid_coords
from vistok.tokens import TokenSpec, TokenTensor


@pytest.fixture
def local(tmp_path) -> TokenStore:
    """Five samples of two columns in three shards, one of them empty; the folder's name is a pattern to a shell."""
    generator = torch.Generator().manual_seed(0)

    def item(rows: int) -> TokenTensor:
        spec = TokenSpec("made", 2, (900,), (rows, 3), 8, (rows * 8, 24))
        ids = torch.randint(900, (1, rows * 3), generator=generator)
        embeds = torch.randn(1, rows * 3, 2, generator=generator)
        return TokenTensor(spec, embeds=embeds, indices=ids, coords=grid_coords(rows, 3))

    root = tmp_path / "made [v1]*"
    root.mkdir()
    columns = {"indices": "uint16", "embeds": "bfloat16"}
    dataset = {"format": "vistok-store", "version": 1, "plan_hash": "h", "num_shards": 5, "columns": columns}
    (root / "dataset.json").write_text(json.dumps(dataset | {"tokenizer": "made", "fingerprint": "f"}))
    for shard, sizes in {0: [2, 1, 3], 2: [], 3: [1, 0]}.items():
        items = [item(rows) for rows in sizes]
        samples = [
            Sample({"key": f"{shard}/{at}", "caption": f"é {at}"}, one.spec, stored_columns(one, columns))
            for at, one in enumerate(items)
        ]
        write_shard(root, shard, samples, [], header={"tokenizer": "made", "fingerprint": "f"}, plan_hash="h")
    return TokenStore(root)


@pytest.fixture(params=["memory", "file"])
def url(request, local, tmp_path) -> str:
    if request.param == "file":
        return f"file://{local.path}"
    fs = fsspec.filesystem("memory")
    fs.put(str(tmp_path), "/bucket", recursive=True)
    request.addfinalizer(lambda: fs.rm("/bucket", recursive=True))
    return f"memory://bucket/{local.path.name}"


def assert_same(found: TokenTensor, expected: TokenTensor) -> None:
    assert found.spec == expected.spec and found.tensors().keys() == expected.tensors().keys()
    for name, value in found.tensors().items():
        assert value.dtype == expected.tensors()[name].dtype and torch.equal(value, expected.tensors()[name])


def test_a_store_behind_a_url_gives_the_same_samples_rows_and_columns(url, local):
    store = TokenStore(url)
    assert len(store) == len(local) == 5 and store.keys == local.keys and store.columns == local.columns
    assert list(store.rows) == list(local.rows) and store.rows[4]["caption"] == "é 1"
    assert store.lengths.tolist() == local.lengths.tolist() == [6, 3, 9, 3, 0]
    for found, expected in zip(store, local, strict=True):
        assert_same(found, expected)
    for found, expected in zip(store[[4, 0, 4, 3]], local[[4, 0, 4, 3]], strict=True):
        assert_same(found, expected)
    for name in ("indices", "embeds", "coords"):
        ours, theirs = store.column(name), local.column(name)
        assert all(torch.equal(ours[at], theirs[at]) for at in range(5))
        for found, expected in zip(ours.gather([4, 1, 0, 1]), theirs.gather([4, 1, 0, 1]), strict=True):
            assert found.dtype == expected.dtype and torch.equal(found, expected)
        for found, expected in zip(ours.scan(), theirs.scan(), strict=True):
            assert np.array_equal(found.values, expected.values) and np.array_equal(found.offsets, expected.offsets)


def test_what_comes_from_a_url_may_be_written_to(url):
    store = TokenStore(url)
    before = store.column("indices")[0].tolist()
    store.column("indices")[0].zero_()
    store.column("indices").gather([0]).values.zero_()
    store[0].indices.zero_()
    assert store.column("indices")[0].tolist() == before


@pytest.mark.parametrize("url", ["memory"], indirect=True)
def test_many_samples_are_one_request_for_their_bytes_and_no_more(url, monkeypatch):
    store = TokenStore(url)
    list(store)
    asked = []
    cat_ranges = MemoryFileSystem.cat_ranges

    def counted(self, paths, starts, ends, **options):
        asked.append(sum(end - start for start, end in zip(starts, ends, strict=True)))
        return cat_ranges(self, paths, starts, ends, **options)

    monkeypatch.setattr(MemoryFileSystem, "cat_ranges", counted)
    store.__getitems__([0, 3, 1, 4])
    assert asked == [(6 + 3 + 3) * (2 + 4)]
    store.column("indices").gather([2, 0])
    assert asked[1:] == [(9 + 6) * 2]


def test_a_store_behind_a_url_pickles_as_its_url(url, local):
    store = TokenStore(url)
    list(store)
    pickled = pickle.dumps(store)
    assert len(pickled) < 500
    assert_same(pickle.loads(pickled)[2], local[2])
    column = pickle.loads(pickle.dumps(store.column("indices")))
    assert torch.equal(column[2], local.column("indices")[2])


def test_worker_processes_read_from_a_url(local):
    store = TokenStore(f"file://{local.path}")
    assert len(store[0]) == 1  # a shard is open before the processes are forked
    loader = DataLoader(store, batch_size=None, num_workers=2, multiprocessing_context="fork")
    for found, expected in zip(loader, local, strict=True):
        assert_same(found, expected)


def test_a_url_without_a_store_says_so(local):
    with pytest.raises(FileNotFoundError, match="memory://nowhere/at/all: expected a token store"):
        TokenStore("memory://nowhere/at/all")
    assert TokenStore(f"file://{local.path}/").keys == local.keys


def test_a_scheme_that_nobody_knows_is_an_error_that_says_so():
    with pytest.raises(ValueError, match="carrier://pigeon: expected a folder or a URL of a scheme.*carrier"):
        TokenStore("carrier://pigeon")


def test_a_scheme_whose_package_is_absent_is_an_error_that_names_it():
    # A name that fsspec knows and no environment has installed.
    fsspec.register_implementation("absent", "absent_fs.AbsentFS", errtxt="Install absentfs to read this")
    with pytest.raises(ImportError, match="absent://bucket/store.*absentfs"):
        TokenStore("absent://bucket/store")


def test_a_path_of_a_store_behind_a_url_is_refused(url):
    with pytest.raises(ValueError, match="expected a store in a local folder"):
        _ = TokenStore(url).path


def test_a_file_that_is_cut_or_gone_is_an_error_that_names_it(local):
    url = f"file://{local.path}"
    tensors, rows, *_ = shard_files(local.path, 0)
    content = tensors.read_bytes()
    tensors.write_bytes(content[:-1])
    with pytest.raises(ValueError, match=r"file://.*00000\.safetensors: expected.*vistok store verify"):
        TokenStore(url)[0]
    tensors.write_bytes(content)
    store = TokenStore(url)
    assert store[0] is not None
    tensors.write_bytes(content[:500])
    with pytest.raises(ValueError, match=r"file://.*00000\.safetensors: expected bytes"):
        store.column("embeds").gather([0, 1, 2])
    tensors.unlink()
    with pytest.raises(FileNotFoundError, match=r"file://.*00000\.safetensors"):
        TokenStore(url)[0]
    tensors.write_bytes(content)
    rows.unlink()
    with pytest.raises(FileNotFoundError, match=r"file://.*00000\.parquet"):
        TokenStore(url)[0]
