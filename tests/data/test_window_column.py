"""Windows as a column of a store: ids come back without the stored ones, the store stays sound, a run goes on."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from vistok.cli.main import main
from vistok.data.equal_windows import DigitModel
from vistok.data.merge import merge_stores
from vistok.data.store import TokenStore
from vistok.data.verify import verify_store
from vistok.data.window_column import WindowColumn, add_windows

from .store_fixtures import write_store


@pytest.fixture
def source(tmp_path):
    return write_store(tmp_path / "ids", [[3, 200], [], [1, 40]])


def test_ids_come_back_from_windows_alone(source, tmp_path):
    summary = add_windows(source.path, tmp_path / "windows", bits=64, sizes=(10, 10, 9))
    store = TokenStore(tmp_path / "windows")
    column = WindowColumn(store)
    assert len(column) == len(source) == 4
    for index, tokens in enumerate(source):
        assert torch.equal(column.ids(index), tokens.indices[0])
        assert torch.equal(store[index].indices, tokens.indices)
    assert summary.ids == 244 and summary.windows == sum(len(column.words(index)) for index in range(4))
    assert summary.window_bytes == 8 * summary.windows < summary.raw_bytes == 488
    assert summary.model_bytes == len(column.model.record()["frequencies"]) > 0
    assert column.words(-1).tolist() == column.words(3).tolist()


def test_the_new_store_is_sound_and_one_that_was_interrupted_is_finished(source, tmp_path):
    out = tmp_path / "windows"
    first = add_windows(source.path, out)
    assert verify_store(out) == {}
    files = {path: path.read_bytes() for path in out.rglob("*") if path.is_file() and "lock" not in path.name}
    (out / "commits" / "00002.json").unlink()
    assert add_windows(source.path, out) == first
    assert {path: path.read_bytes() for path in files} == files


def test_the_command_takes_the_model_of_another_store(source, tmp_path):
    add_windows(source.path, tmp_path / "one")
    numbers = tmp_path / "numbers.json"
    arguments = ["store", "windows", str(source.path), str(tmp_path / "two"), "--model", str(tmp_path / "one")]
    assert not main([*arguments, "--json", str(numbers)])
    assert json.loads(numbers.read_text())["ids"] == 244
    models = [WindowColumn(TokenStore(tmp_path / name)).model.record() for name in ("one", "two")]
    assert models[0] == models[1]


def test_what_has_no_windows_and_what_cannot_have_any_is_told(source, tmp_path):
    with pytest.raises(ValueError, match="expected a store with windows"):
        WindowColumn(source)
    add_windows(source.path, tmp_path / "one")
    with pytest.raises(ValueError, match="expected a store without windows"):
        add_windows(tmp_path / "one", tmp_path / "two")
    with pytest.raises(ValueError, match="was made by another plan"):
        add_windows(source.path, tmp_path / "one", bits=64)
    with pytest.raises(ValueError, match="at least one sample"):
        add_windows(write_store(tmp_path / "empty", [[]]).path, tmp_path / "none")


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"bits": 100}, "multiple of 16"),
        ({"sizes": (5, 5)}, r"ids of 900 codes, got alphabets \[5, 5\]"),
        ({"model": DigitModel.fit([], (2,))}, r"ids of 900 codes, got alphabets \[2\]"),
    ],
)
def test_what_is_refused_leaves_no_store_behind_that_would_be_in_the_way(source, tmp_path, given, told):
    with pytest.raises(ValueError, match=told):
        add_windows(source.path, tmp_path / "windows", **given)
    assert not (tmp_path / "windows").exists()


def test_a_url_is_told_and_becomes_no_folder_of_that_name(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="memory://out: expected a local folder"):
        add_windows(source.path, "memory://out")
    assert not (tmp_path / "memory:").exists()


def test_a_damaged_store_is_told_before_anything_is_written(source, tmp_path):
    file = source.path / "shards" / "00002.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(ValueError, match="00002.safetensors"):
        add_windows(source.path, tmp_path / "windows")
    assert not (tmp_path / "windows").exists()


def test_merged_stores_are_each_told_by_their_own_model(source, tmp_path):
    other = write_store(tmp_path / "other", [[7, 90], [30]], first=4)
    add_windows(source.path, tmp_path / "one")
    add_windows(other.path, tmp_path / "two", bits=64)
    merge_stores([tmp_path / "one", tmp_path / "two"], tmp_path / "both")
    store = TokenStore(tmp_path / "both")
    column = WindowColumn(store)
    assert len(column) == 7
    for index, tokens in enumerate(store):
        assert torch.equal(column.ids(index), tokens.indices[0])
    with pytest.raises(ValueError, match="expected windows of one model, got several"):
        _ = column.model
    with pytest.raises(ValueError, match="expected a store without windows"):
        add_windows(tmp_path / "both", tmp_path / "again")


def test_a_column_of_the_users_that_is_called_windows_is_not_doubled(source, tmp_path):
    file = source.path / "shards" / "00000.parquet"
    rows = pq.read_table(file)
    pq.write_table(rows.append_column("windows", pa.array([3, 4])), file)
    with pytest.raises(ValueError, match='its rows have a column "windows"'):
        add_windows(source.path, tmp_path / "windows")
