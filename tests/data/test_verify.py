import hashlib
import json
import random
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors import safe_open
from safetensors.torch import save

from vistok.data.encode import encode_folder
from vistok.data.plan import EncodeSettings
from vistok.data.shard import shard_files
from vistok.data.verify import verify_store


@pytest.mark.parametrize("part", ["tensors", "rows"])
@pytest.mark.parametrize("place", [0.1, 0.5, 1.0])
def test_verify_names_the_file_in_which_a_bit_flipped(store, part, place):
    file = getattr(shard_files(store.path, 1), part)
    content = bytearray(file.read_bytes())
    content[int(place * (len(content) - 1))] ^= 1
    file.write_bytes(content)
    problems = verify_store(store.path)
    assert list(problems) == ["00001"] and problems["00001"][0].startswith(f"{file.name}: sha256")


def test_verify_finds_a_sound_store_sound_and_forgives_shards_that_are_not_committed(store):
    shard_files(store.path, 0).commit.unlink()
    shard_files(store.path, 0).tensors.write_bytes(b"half")
    assert verify_store(store.path) == {}


def test_verify_names_missing_files_foreign_records_and_records_that_cannot_be_read(store):
    shard_files(store.path, 0).rows.unlink()
    shard_files(store.path, 1).commit.write_text("{")
    record = json.loads(shard_files(store.path, 2).commit.read_text())
    shard_files(store.path, 2).commit.write_text(json.dumps(record | {"plan_hash": "x"}))
    (store.path / "commits/00007.json").write_text("{}")
    problems = verify_store(store.path)
    assert list(problems) == ["00000", "00001", "00002", "00007"]
    assert problems["00000"] == ["00000.parquet: is missing"]
    assert "00001.json" in problems["00001"][0] and "another plan" in problems["00002"][0]


def _rewrite(root: Path, change) -> None:
    """Change the tensors of shard 0 and make the commit record agree with the new bytes."""
    files = shard_files(root, 0)
    with safe_open(files.tensors, "pt") as file:
        metadata, tensors = file.metadata(), {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    change(tensors)
    files.tensors.write_bytes(save(tensors, metadata))
    _commit_anew(root, 0)


def _commit_anew(root: Path, shard: int, **changes) -> None:
    """Make a commit record agree with the files of its shard, whatever is in them."""
    files = shard_files(root, shard)
    record = json.loads(files.commit.read_text())
    record["sha256"] = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files[:2]}
    record["bytes"] = sum(file.stat().st_size for file in files[:2])
    files.commit.write_text(json.dumps(record | changes))


def _swap(tensors):
    tensors["indices.offsets"][[1, 2]] = tensors["indices.offsets"][[2, 1]]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_swap, "offsets of indices to rise from 0 to 404 in 4 steps"),
        (lambda tensors: tensors["indices.offsets"].add_(1), "offsets of indices to rise from 0 to 404 in 4 steps"),
        (lambda tensors: tensors["indices.offsets"][2].fill_(1 << 62), "offsets of indices to rise"),
        (lambda tensors: tensors["indices.offsets"][0].fill_(-(1 << 63)), "offsets of indices to rise"),
        (lambda tensors: tensors["indices.offsets"][1].sub_(1), "n_tokens disagrees with the offsets"),
        (lambda tensors: tensors.pop("indices.offsets"), "expected offsets of indices"),
        (lambda tensors: tensors.pop("indices.values"), "expected columns for 4 samples, got none"),
        (lambda tensors: tensors["indices.values"].fill_(65535), "expected ids below [64000], got 65535..65535"),
    ],
)
def test_verify_reads_what_the_hash_cannot_tell(store, change, said):
    _rewrite(store.path, change)
    problems = verify_store(store.path)
    assert list(problems) == ["00000"]
    assert said in problems["00000"][0] and problems["00000"][0].removeprefix("shards/").startswith("00000.")


def test_verify_finds_numbers_that_are_not_finite(continuous, photos, tmp_path):
    encode_folder(continuous, photos, tmp_path / "s", EncodeSettings(threads=1))
    _rewrite(tmp_path / "s", lambda tensors: tensors["embeds.values"][3].fill_(float("nan")))
    assert verify_store(tmp_path / "s") == {"00000": ["00000.safetensors: embeds: holds NaN or infinity"]}


def _change_rows(root: Path, shard: int, change) -> None:
    files = shard_files(root, shard)
    pq.write_table(change(pq.ParquetFile(files.rows).read()), files.rows)
    _commit_anew(root, shard)


def _with_column(name: str, values: list, kind: pa.DataType | None = None):
    def change(table: pa.Table) -> pa.Table:
        place = table.column_names.index(name)
        return table.set_column(place, name, pa.array(values, kind or table.schema.field(name).type))

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_with_column("key", ["a", "b", "a", "d"]), "expected every key once, got several times: 'a'"),
        (_with_column("key", ["a", None, "c", "d"]), "expected a key in every row"),
        (_with_column("digest", ["0" * 32, None, "f" * 31, "0" * 32]), "expected digests of 32 hexadecimal digits"),
        (_with_column("width", ["1"] * 4, pa.string()), "column width: expected int32, got string"),
        (_with_column("grid", [[1, 1]] * 4), "of its whole grid"),
        (_with_column("grid", [None] * 4), "of its whole grid"),
        (_with_column("image_size", [[-1, None]] * 4), "expected rows of grids and sizes"),
        (lambda table: table.drop_columns(["source"]), "column source: expected string, got none"),
        (lambda table: table.slice(1), "expected 4 rows, got 3"),
        (lambda table: table.append_column("tag", pa.array([1] * 4)), "expected the user's columns [], got ['tag']"),
    ],
)
def test_verify_reads_the_rows(store, change, said):
    _change_rows(store.path, 0, change)
    problems = verify_store(store.path)
    assert list(problems) == ["00000"] and said in problems["00000"][0] and "00000." in problems["00000"][0]


def test_verify_names_keys_that_two_shards_have(store):
    keys = pq.ParquetFile(shard_files(store.path, 0).rows).read()["key"].to_pylist()
    _change_rows(store.path, 2, _with_column("key", keys[1:2]))
    assert verify_store(store.path) == {
        "00002": [f"00002.parquet: keys that are also in 00000.parquet: {keys[1]!r}"],
    }


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("n_samples", 5),
        ("n_samples", -1),
        ("n_samples", "4"),
        ("n_tokens", 403),
        ("n_errors", 1),
        ("bytes", 7),
        ("shard", 1),
        ("sha256", {}),
        ("sha256", None),
        ("attempt", None),
        ("worker", 3),
        ("seconds", "soon"),
    ],
)
def test_verify_reads_every_field_of_the_commit_record(store, name, value):
    record = json.loads(shard_files(store.path, 0).commit.read_text())
    shard_files(store.path, 0).commit.write_text(json.dumps(record | {name: value}))
    assert list(verify_store(store.path)) == ["00000"]


def test_verify_counts_the_samples_that_failed(store):
    errors = shard_files(store.path, 0).errors
    errors.parent.mkdir(exist_ok=True)
    errors.write_text('{"key": "bad.png"}\n')
    assert verify_store(store.path)["00000"] == ["00000.jsonl: holds 1 errors, the commit record says 0"]
    _commit_anew(store.path, 0, n_errors=1)
    assert verify_store(store.path) == {}
    errors.write_text("{\n")
    assert "00000.jsonl: line 1: expected JSON" in verify_store(store.path)["00000"][0]
    errors.unlink()
    assert "00000.jsonl: is missing" in verify_store(store.path)["00000"][0]


def test_verify_names_both_tokenizers_of_a_foreign_shard(store, other_weights, photos, tmp_path):
    encode_folder(other_weights, photos, tmp_path / "other", EncodeSettings(shard_samples=4, threads=1))
    for here, there in zip(shard_files(tmp_path / "other", 1)[:2], shard_files(store.path, 1)[:2], strict=True):
        shutil.copy(here, there)
    _commit_anew(store.path, 1)
    [problem] = verify_store(store.path)["00001"]
    theirs = json.loads((tmp_path / "other/dataset.json").read_text())["fingerprint"]
    assert problem.startswith("00001.safetensors: made by another tokenizer")
    assert theirs[:16] in problem and store.fingerprint[:16] in problem


def _mutated(content: bytes, end: int, chance: random.Random) -> bytes:
    """Change, cut out, double or overwrite a few bytes before `end`."""
    changed = bytearray(content)
    for _ in range(chance.randint(1, 4)):
        place = chance.randrange(min(end, len(changed)))
        size = chance.choice([1, 1, 2, 8, 40])
        kind = chance.randrange(4)
        if kind == 0:
            changed[place] ^= 1 << chance.randrange(8)
        elif kind == 1:
            del changed[place : place + size]
        elif kind == 2:
            changed[place:place] = changed[place : place + size]
        else:
            changed[place : place + size] = chance.choice([b"\xff", b"\0", b"9", b'"', b"["]) * size
    return bytes(changed)


@pytest.mark.parametrize("part", ["tensors", "rows", "commit"])
@pytest.mark.parametrize("seed", range(2))
def test_verify_tells_of_mutated_files_and_raises_nothing(store, part, seed):
    chance = random.Random(f"{part} {seed}")
    _keep_only_the_last_shard(store.path)
    file = getattr(shard_files(store.path, 2), part)
    commit = shard_files(store.path, 2).commit
    content, record = file.read_bytes(), commit.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little") if part == "tensors" else len(content)
    for _ in range(100):
        changed = _mutated(content, end, chance)
        file.write_bytes(changed)
        problems = verify_store(store.path)
        if part == "commit":
            assert problems or _says_the_same(changed, record)
        else:
            assert list(problems) == ["00002"] and file.name in problems["00002"][0] or changed == content
            _commit_anew(store.path, 2)  # as if it had been written like that: only the contents can tell
            assert {*verify_store(store.path)} <= {"00002"}
        file.write_bytes(content)
        commit.write_bytes(record)


def _keep_only_the_last_shard(root: Path) -> None:
    for shard in range(2):
        shard_files(root, shard).commit.unlink()


def _says_the_same(changed: bytes, record: bytes) -> bool:
    """Whether two records agree in all that is said of the data, not of the run that wrote it."""
    ours, theirs = json.loads(changed), json.loads(record)
    return all(ours[name] == theirs[name] for name in theirs if name not in ("attempt", "worker", "seconds"))


def test_every_flipped_bit_of_what_a_commit_record_says_of_the_data_is_found(store):
    _keep_only_the_last_shard(store.path)
    commit = shard_files(store.path, 2).commit
    content = commit.read_bytes()
    for place in range(0, len(content), 3):
        changed = bytearray(content)
        changed[place] ^= 1 << place % 7
        commit.write_bytes(changed)
        assert verify_store(store.path) or _says_the_same(bytes(changed), content)


def test_a_folder_named_like_a_column_adds_none(encoded, tmp_path):
    assert verify_store(shutil.copytree(encoded, tmp_path / "split=train")) == {}
