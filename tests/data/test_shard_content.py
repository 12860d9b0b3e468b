import json

import pyarrow as pa
import pytest
import torch

from vistok.data.encode import encode_folder
from vistok.data.plan import EncodeSettings
from vistok.data.shard import shard_files
from vistok.data.shard_content import open_committed, read_errors, repeated_keys
from vistok.data.store import TokenStore
from vistok.data.store_files import commit_numbers
from vistok.rows import grid_coords


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_a_sample_comes_in_the_dtypes_of_the_store(continuous, photos, tmp_path, dtype):
    encode_folder(continuous, photos, tmp_path / "s", EncodeSettings(threads=1, embeds_dtype=dtype))
    content = open_committed(tmp_path / "s").shard(0)
    assert content.names == ["embeds", "coords"] and not content.is_stored("coords")
    for index, item in enumerate(TokenStore(tmp_path / "s")):
        tokens = content.tokens(index)
        assert tokens["embeds"].dtype == getattr(torch, dtype) and tokens["coords"].dtype == torch.int16
        assert torch.equal(tokens["embeds"].float(), item.embeds[0]) and content.specs[index] == item.spec
        assert torch.equal(tokens["coords"].int(), grid_coords(*item.spec.grid)[0])
        assert len(tokens["embeds"]) == content.lengths[index]
    assert content.column("embeds").shape == (sum(content.lengths), continuous.spec.dim)
    assert content.empty("embeds").shape == (0, continuous.spec.dim)


def test_only_committed_shards_of_the_plan_are_there(store):
    (store.path / "commits/mine.json").write_text("{")
    (store.path / "commits/00009.json").write_text(
        json.dumps({"plan_hash": store.dataset["plan_hash"], "n_samples": 0, "n_tokens": 0, "bytes": 0})
    )
    (store.path / "commits/000001.json").write_text("{")
    shard_files(store.path, 0).commit.write_text('{"plan_hash": "another"}')
    assert commit_numbers(store.files) == [0, 1, 2, 9]
    assert [*open_committed(store.path).commits] == [1, 2]


def test_a_plan_of_absurdly_many_shards_is_refused(store):
    dataset = json.loads((store.path / "dataset.json").read_text())
    (store.path / "dataset.json").write_text(json.dumps(dataset | {"num_shards": 10**15}))
    with pytest.raises(ValueError, match="num_shards in 0..10000000, got 1000000000000000"):
        open_committed(store.path)


def test_a_record_that_lacks_something_is_refused_by_name(store):
    file = shard_files(store.path, 1).commit
    record = json.loads(file.read_text())
    del record["n_tokens"]
    file.write_text(json.dumps(record))
    with pytest.raises(ValueError, match="00001.json: expected n_tokens >= 0, got None"):
        open_committed(store.path)


def test_errors_are_read_line_by_line():
    content = b'{"key": "a", "error": "E"}\n{"key": "b\\u2028"}\n'
    assert read_errors(content, "00000.jsonl") == [{"key": "a", "error": "E"}, {"key": "b\u2028"}]
    for bad in (b'{"key": "a"}\n{\n', b'{"key": "a"}\n[]\n', b'{"key": "a"}\n{"key": 1}\n'):
        with pytest.raises(ValueError, match="00000.jsonl: line 2: expected"):
            read_errors(bad, "00000.jsonl")


def test_keys_are_counted_over_all_shards():
    columns = [pa.chunked_array([["a", "b"], ["c"]]), pa.chunked_array([["c", "d"]]), pa.chunked_array([], pa.string())]
    assert repeated_keys(columns).to_pylist() == ["c"]
    assert repeated_keys(columns[:1]).to_pylist() == [] and repeated_keys([]).to_pylist() == []
