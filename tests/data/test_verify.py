import hashlib
import json
from pathlib import Path

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
    record = json.loads(files.commit.read_text())
    record["sha256"][files.tensors.name] = hashlib.sha256(files.tensors.read_bytes()).hexdigest()
    files.commit.write_text(json.dumps(record))


def _swap(tensors):
    tensors["indices.offsets"][[1, 2]] = tensors["indices.offsets"][[2, 1]]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_swap, "offsets rising from 0"),
        (lambda tensors: tensors["indices.offsets"].add_(1), "offsets rising from 0"),
        (lambda tensors: tensors["indices.offsets"][1].sub_(1), "disagree with n_tokens"),
        (lambda tensors: tensors.pop("indices.offsets"), "no offsets"),
        (lambda tensors: tensors.pop("indices.values"), "column indices is missing"),
        (lambda tensors: tensors["indices.values"].fill_(65535), "expected ids below .64000., got 65535..65535"),
    ],
)
def test_verify_reads_what_the_hash_cannot_tell(store, change, said):
    _rewrite(store.path, change)
    problems = verify_store(store.path)
    assert list(problems) == ["00000"]
    assert said.replace(".64000.", "[64000]") in problems["00000"][0]


def test_verify_finds_numbers_that_are_not_finite(continuous, photos, tmp_path):
    encode_folder(continuous, photos, tmp_path / "s", EncodeSettings(threads=1))
    _rewrite(tmp_path / "s", lambda tensors: tensors["embeds.values"][3].fill_(float("nan")))
    assert verify_store(tmp_path / "s") == {"00000": ["00000.safetensors: embeds: holds NaN or infinity"]}
