import pickle

import fsspec
import pytest
import torch

from vistok.data.shard_cache import ShardCache
from vistok.data.store import TokenStore


@pytest.fixture
def url(store, request) -> str:
    """The store of three shards, in memory."""
    fs = fsspec.filesystem("memory")
    fs.put(str(store.path), "/cached/store", recursive=True)
    request.addfinalizer(lambda: fs.rm("/cached", recursive=True))
    return "memory://cached/store"


def sizes(folder) -> list[int]:
    return [file.stat().st_size for file in folder.iterdir() if file.name != ".lock"]


def test_a_shard_is_fetched_once_and_gives_the_same_samples(url, store, tmp_path):
    cached = TokenStore(url, cache=ShardCache(tmp_path / "cache"))
    for found, expected in zip(cached, store, strict=True):
        assert torch.equal(found.indices, expected.indices) and torch.equal(found.coords, expected.coords)
    assert list(cached.rows) == list(store.rows)
    assert len(sizes(tmp_path / "cache")) == 6
    fsspec.filesystem("memory").rm("/cached/store/shards", recursive=True)
    again = pickle.loads(pickle.dumps(cached))
    assert torch.equal(
        again.column("indices").gather([8, 0, 4]).values, store.column("indices").gather([8, 0, 4]).values
    )


def test_the_cache_keeps_its_size_and_what_was_used_last(url, store, tmp_path):
    files = {file.stat().st_size for file in (store.path / "shards").iterdir()}
    cap = 2 * max(files)
    cached = TokenStore(url, cache=ShardCache(tmp_path / "cache", max_bytes=cap))
    for _ in range(2):
        for found, expected in zip(cached, store, strict=True):
            assert torch.equal(found.indices, expected.indices)
            assert sum(sizes(tmp_path / "cache")) <= cap
    last = cached.dataset["num_shards"] - 1
    digest = cached.commits[last]["sha256"][f"{last:05d}.safetensors"]
    assert (tmp_path / f"cache/{digest}.safetensors").exists()
    with pytest.raises(ValueError, match=r"safetensors: expected a file of at most 10 bytes, the size"):
        TokenStore(url, cache=ShardCache(tmp_path / "small", max_bytes=10))[0]


def test_what_is_damaged_is_never_read(url, store, tmp_path):
    cache = ShardCache(tmp_path / "cache")
    expected = TokenStore(url, cache=cache)[0].indices.tolist()
    for file in (tmp_path / "cache").glob("*.safetensors"):
        file.write_bytes(file.read_bytes()[:-1] + b"x")
    assert TokenStore(url, cache=cache)[0].indices.tolist() == expected == store[0].indices.tolist()
    content = (store.path / "shards/00000.safetensors").read_bytes()
    fsspec.filesystem("memory").pipe_file("/cached/store/shards/00000.safetensors", content[:-1] + b"x")
    with pytest.raises(ValueError, match="memory://cached/store/shards/00000.safetensors: sha256 is .* record says"):
        TokenStore(url, cache=ShardCache(tmp_path / "other"))[0]
    assert not sizes(tmp_path / "other")
