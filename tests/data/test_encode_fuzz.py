"""Damaged files through the whole pipeline: each ends as a sample or as a named error, and the store is sound."""

import io
import json
import random
import tarfile
from pathlib import Path

import pytest
from PIL import Image
from skimage import data

from vistok.bench.encode import Nothing
from vistok.data.encode import encode_folder
from vistok.data.plan import EncodeSettings
from vistok.data.store import TokenStore
from vistok.data.verify import verify_store

SETTINGS = EncodeSettings(shard_samples=100, threads=1)
SUFFIXES = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp", "GIF": "gif"}


def _pictures() -> dict[str, bytes]:
    photo = Image.fromarray(data.astronaut()[60:100, 200:248])
    files = {}
    for kind, suffix in SUFFIXES.items():
        file = io.BytesIO()
        photo.save(file, kind)
        files[suffix] = file.getvalue()
    return files


def _damaged(rng: random.Random, content: bytes, header: int) -> bytes:
    changed = bytearray(content)
    for _ in range(rng.choice([1, 1, 2, 8])):
        changed[rng.randrange(min(header, len(changed)))] = rng.choice([0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)])
    return bytes(changed[: rng.choice([len(changed), len(changed), rng.randrange(len(changed))])])


def _tar(pictures: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for number, (suffix, content) in enumerate(pictures.items()):
            for name, payload in ((f"{number}.{suffix}", content), (f"{number}.txt", b"a caption")):
                member = tarfile.TarInfo(name)
                member.size = len(payload)
                archive.addfile(member, io.BytesIO(payload))
    return file.getvalue()


def _outcomes(source: Path, out: Path) -> tuple[set[str], set[str]]:
    """Keys of the samples and of the errors."""
    summary = encode_folder(Nothing(), source, out, SETTINGS)
    assert verify_store(out) == {}
    errors = [json.loads(line) for file in (out / "errors").glob("*") for line in file.read_text().splitlines()]
    samples = TokenStore(out).keys
    assert all(error["message"] and error["error"] in ("ValueError", "OSError") for error in errors)
    assert (summary.images, summary.errors) == (len(samples), len(errors))
    assert not {*samples} & {error["key"] for error in errors}
    return {*samples}, {error["key"] for error in errors}


@pytest.mark.parametrize("count", [80, pytest.param(4000, marks=pytest.mark.slow)])
def test_every_damaged_picture_is_a_sample_or_a_named_error(tmp_path, count):
    rng, pictures = random.Random(0), _pictures()
    (tmp_path / "in").mkdir()
    for number in range(count):
        suffix = rng.choice([*pictures])
        (tmp_path / "in" / f"{number}.{suffix}").write_bytes(_damaged(rng, pictures[suffix], 200))
    samples, errors = _outcomes(tmp_path / "in", tmp_path / "out")
    assert samples | errors == {path.name for path in (tmp_path / "in").iterdir()}
    assert samples and errors


@pytest.mark.parametrize("count", [10, pytest.param(400, marks=pytest.mark.slow)])
def test_damaged_archives_lose_no_picture_of_sound_ones(tmp_path, count):
    rng, pictures = random.Random(1), _pictures()
    whole = _tar(pictures)
    (tmp_path / "in").mkdir()
    for number in range(count):
        (tmp_path / "in" / f"{number}.tar").write_bytes(_damaged(rng, whole, len(whole)))
        (tmp_path / "in" / f"{number}-sound.tar").write_bytes(whole)
    samples, errors = _outcomes(tmp_path / "in", tmp_path / "out")
    assert {f"{n}-sound.tar/{picture}" for n in range(count) for picture in range(len(pictures))} <= samples
    assert errors
