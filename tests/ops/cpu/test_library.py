"""Building and loading C++: private, once, at the same time from two sides, and never a reason to fail."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from vistok.ops.cpu import library

SEARCH = """
import torch, warnings
from vistok.ops import nearest_code, code_statistics, explain
torch.set_num_threads(1)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    generator = torch.Generator().manual_seed(0)
    x, codes = torch.randn(300, 24, generator=generator), torch.randn(700, 24, generator=generator)
    ids = nearest_code(x, codes, precision="certified")
    counts = code_statistics(x, ids, codes).counts
    nearest_code(x, codes)
print(len(caught), explain(nearest_code, x, codes).backend, hash(tuple(ids.tolist())), int(counts.sum()))
print(*(str(warning.message) for warning in caught))
"""


def command(cache: Path, **environment: str) -> subprocess.Popen[str]:
    """A fresh Python that searches, with its own cache."""
    path = os.pathsep.join(sys.path)
    given = {**os.environ, "VISTOK_CACHE": str(cache), "PYTHONPATH": path, **environment}
    return subprocess.Popen(
        [sys.executable, "-c", SEARCH], env=given, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def said(process: subprocess.Popen[str]) -> tuple[list[str], str]:
    """What the search printed: its numbers, and its warnings."""
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    numbers, _, warned = out.partition("\n")
    return numbers.split(), warned.strip()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("VISTOK_CACHE", str(folder))
    monkeypatch.setattr(library, "_loaded", {})
    return folder


@pytest.mark.slow
def test_without_a_compiler_the_results_are_the_same_and_one_warning_says_why(tmp_path: Path) -> None:
    nothing = tmp_path / "bin"
    nothing.mkdir()
    with_compiler, warned = said(command(tmp_path / "a"))
    assert with_compiler[:2] == ["0", "cpu"] and not warned
    without, warned = said(command(tmp_path / "b", PATH=str(nothing), CXX=""))
    assert without[:2] == ["1", "reference"] and without[2:] == with_compiler[2:]
    assert "there is no C++ compiler: install g++" in warned


@pytest.mark.slow
def test_two_processes_may_build_at_once(tmp_path: Path) -> None:
    both = [command(tmp_path / "cache") for _ in range(2)]
    first, second = (said(process) for process in both)
    assert first == second and first[0][:2] == ["0", "cpu"]
    made = sorted(path.name.partition("-")[0] for path in (tmp_path / "cache" / "ops").glob("*.so"))
    assert made == ["code_statistics", "nearest_code"]


def test_the_cache_is_private_and_used_again(cache: Path) -> None:
    built = library.build("code_statistics")
    assert built.parent == cache / "ops"
    assert (cache / "ops").stat().st_mode & 0o777 == 0o700
    before = built.stat().st_mtime_ns
    assert library.build("code_statistics") == built and built.stat().st_mtime_ns == before
    assert library.build("code_statistics", "x86-64") != built


@pytest.mark.parametrize(("place", "mode"), [("cache", 0o777), ("cache/ops", 0o755)])
def test_a_folder_that_others_may_enter_is_refused(cache: Path, place: str, mode: int) -> None:
    (cache / "ops").mkdir(parents=True, mode=0o700)
    cache.chmod(0o700)
    (cache.parent / place).chmod(mode)
    with pytest.warns(RuntimeWarning, match=f"open to other users .mode {mode:o}.*VISTOK_CACHE"):
        found = library.load("code_statistics")
    assert isinstance(found, str)


@pytest.mark.parametrize("place", ["cache", "cache/ops"])
def test_a_folder_of_another_user_is_refused(cache: Path, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (cache / "ops").mkdir(parents=True, mode=0o700)
    cache.chmod(0o700)
    if os.getuid() == 0:
        os.chown(cache.parent / place, 12345, -1)
    else:  # an ordinary user cannot give folders away, only stop being their owner
        monkeypatch.setattr(library.os, "getuid", lambda: 12345)
    with pytest.warns(RuntimeWarning, match="is not a folder of this user"):
        assert isinstance(library.load("code_statistics"), str)


def test_a_link_in_place_of_the_folder_is_refused(cache: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    cache.mkdir(mode=0o700)
    (cache / "ops").symlink_to(tmp_path / "elsewhere")
    with pytest.warns(RuntimeWarning, match="is not a folder"):
        assert isinstance(library.load("code_statistics"), str)


def test_a_compiler_that_fails_is_a_reason_and_leaves_nothing_behind(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "c++"
    broken.write_text('#!/bin/sh\n[ "$1" = --version ] && exit 0\necho "no room" >&2\nexit 1\n')
    broken.chmod(0o755)
    monkeypatch.setenv("CXX", str(broken))
    with pytest.warns(RuntimeWarning, match="cannot compile code_statistics.cpp: no room"):
        assert isinstance(library.load("code_statistics"), str)
    assert [path.name for path in (cache / "ops").iterdir()] == ["code_statistics.lock"]
    with pytest.raises(RuntimeError, match="no compiled code_statistics: .*no room"):
        library.function("code_statistics")


def test_the_cache_is_where_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VISTOK_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert library.cache_folder() == Path("/x/vistok")
    monkeypatch.setenv("VISTOK_CACHE", "/y")
    assert library.cache_folder() == Path("/y")
    monkeypatch.delenv("VISTOK_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert library.cache_folder() == Path.home() / ".cache" / "vistok"
