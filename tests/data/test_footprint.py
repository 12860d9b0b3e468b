"""What encoding leaves on the disk beside the store: compiled code in the cache, and nothing else."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import vistok

from .test_exactly_once import store_bytes


def _encode_at_home(home: Path, photos: Path, out: Path, *more: str, **environment: str) -> str:
    """What a fresh process says that encodes with the model beside `home` and owns nothing else."""
    package = str(Path(vistok.__file__).parents[1])
    given = {"PATH": os.environ["PATH"], "PYTHONPATH": package, "VISTOK_NO_PLUGINS": "1", "HOME": str(home)}
    arguments = [str(photos), str(out), "--checkpoint", str(home.parent / "model"), "--shard-samples", "4", *more]
    command = [sys.executable, "-B", "-m", "vistok.cli.main", "encode", *arguments]
    (home / "tmp").mkdir(parents=True, exist_ok=True)
    given |= {"TMPDIR": str(home / "tmp"), **environment}
    done = subprocess.run(command, env=given, capture_output=True, text=True, cwd=home, timeout=240)
    assert done.returncode == 0, done.stderr
    return done.stderr


@pytest.mark.slow
def test_nothing_is_written_outside_the_stores_folder_but_compiled_code_into_the_cache(discrete, photos, tmp_path):
    discrete.save_pretrained(tmp_path / "model")
    (tmp_path / "home/tmp").mkdir(parents=True)
    before = sorted(tmp_path.rglob("*"))
    cache, store = tmp_path / "cache", tmp_path / "store"
    # Both workers find the cache empty and build at once.
    said = _encode_at_home(tmp_path / "home", photos, store, "--workers", "2", VISTOK_CACHE=str(cache))
    assert "Warning" not in said
    assert [path for path in sorted(tmp_path.rglob("*")) if not {cache, store} & {path, *path.parents}] == before
    assert {path.suffix for path in (cache / "ops").iterdir()} == {".so", ".lock"}
    assert [path.name for path in cache.iterdir()] == ["ops"]


@pytest.mark.slow
def test_without_a_compiler_encoding_warns_once_and_writes_the_same_bytes(discrete, photos, tmp_path):
    discrete.save_pretrained(tmp_path / "model")
    caches = [tmp_path / name for name in ("with", "without")]
    _encode_at_home(tmp_path / "home", photos, tmp_path / "a", VISTOK_CACHE=str(caches[0]))
    (tmp_path / "bin").mkdir()
    without = {"VISTOK_CACHE": str(caches[1]), "PATH": str(tmp_path / "bin")}
    said = _encode_at_home(tmp_path / "home", photos, tmp_path / "b", **without)
    assert said.count("RuntimeWarning") == 1 and "there is no C++ compiler" in said
    assert not list(caches[1].rglob("*.so"))
    assert store_bytes(tmp_path / "b") == store_bytes(tmp_path / "a")
