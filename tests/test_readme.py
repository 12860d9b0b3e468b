"""README.md tells the truth: its Python runs, its commands run, and the method it adds works."""

import functools
import inspect
import os
import re
import shlex
import shutil
import subprocess
from importlib import import_module
from pathlib import Path

import pytest
import torch
from skimage import data
from skimage.io import imsave

from vistok.cli import _arguments as arguments
from vistok.cli import main as command
from vistok.config import read_yaml
from vistok.registry import pruner
from vistok.tokens import TokenSpec, TokenTensor

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", README, re.DOTALL)
PYTHON = [code for language, code in BLOCKS if language == "python" and "@register" not in code]
COMMANDS = [line for language, code in BLOCKS if not language for line in code.splitlines()]
IN_PROSE = sorted(set(re.findall(r"`vistok ([a-z][^`]*)`", re.sub(r"```.*?```", "", README, flags=re.DOTALL))))
# What would take an hour or fetch packages runs with these words added.
SHORTER = {
    "vistok train": "--steps 1 --options '{batch: 1, crop: 32, scales: [64]}'",
    "vistok bench prune": "--rounds 1 --options '{size: 2x16x2, methods: [uniform, fastv]}'",
    "vistok bench vqt": "--rounds 1 --options '{batch: 1}'",
    "vistok bench vq": "--rounds 1 --options '{vectors: 64, codes: 64, width: 8}'",
    "vistok bench": "--rounds 1",
    "vistok data photos": "--help",
    "vistok eval adaptive": "--count 4",
    "vistok eval complexity": "--count 2",
    "vistok eval lvlm": "--questions 28",
    "vistok eval retrieval": "--scenes 10",
    "vistok eval probe": "--scenes 20",
    "vistok eval depth": "--scenes 8",
    "vistok eval prune": "--questions 28 --budgets 0.25",
    "vistok eval watermark": "--crop 64 --tokens 16 --keys 2",
    "vistok eval codebook": "--scenes 10 --draws 2",
    "vistok compare tokenizers": "--count 2 --budgets 0.5",
    "vistok compare": "--questions 28 --budgets 0.25",
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory: photo.jpg, and photos/ with two pictures."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    imsave(tmp_path / "photo.jpg", data.astronaut()[:128, :96])
    for name, image in {"astronaut": data.astronaut(), "coffee": data.coffee()}.items():
        imsave(tmp_path / "photos" / f"{name}.png", image[:128, :128])
    return tmp_path


def run(line: str) -> None:
    added = next((words for start, words in SHORTER.items() if line.startswith(start)), "")
    assert command.main(shlex.split(line)[1:] + shlex.split(added)) == 0, line


def test_the_python_of_the_readme_runs_from_top_to_bottom(folder: Path) -> None:
    assert command.main(["encode", "photos", "store"]) == 0
    names: dict[str, object] = {}
    for code in PYTHON:
        exec(compile(code, "README.md", "exec"), names)
    tokens, fewer = names["tokens"], names["fewer"]
    assert tokens.num_slots == 16 * 12 and fewer.num_slots == 48  # type: ignore[attr-defined]


def test_the_store_commands_of_the_readme_run_in_order(folder: Path) -> None:
    lines = [line for line in COMMANDS if re.match(r"vistok (encode|store|decode|report)", line)]
    assert len(lines) == 12
    for line in lines:
        run(line)
    assert len(list((folder / "pictures").glob("*.png"))) == 2


@pytest.mark.slow
def test_the_other_commands_of_the_readme_run(folder: Path) -> None:
    lines = [line for line in COMMANDS if re.match(r"vistok (?!encode|store|decode|report)", line)]
    assert len(lines) >= 6
    for line in lines:
        run(line)


@pytest.mark.parametrize("line", IN_PROSE)
def test_a_command_in_prose_is_one_that_there_is_with_arguments_that_it_takes(line: str) -> None:
    verb, *words = shlex.split(line)
    found = import_module(f"vistok.cli.{verb}").COMMAND
    function = found[words.pop(0)] if isinstance(found, dict) and words else found
    if not callable(function):  # the verb alone, such as `vistok compare`
        return
    asked: list[object] = []

    @functools.wraps(function)
    def asks(*args: object, **options: object) -> None:
        asked.extend([args, options])

    named_only = not words and any(p.default is p.empty for p in inspect.signature(function).parameters.values())
    assert arguments.run(f"vistok {verb}", asks, ["--help"] if named_only else words) in (None, 0), line
    assert asked or named_only
    if verb == "train" and words:
        assert read_yaml("train", words[0])


def test_every_command_of_the_readme_is_one_of_the_tests_above_or_a_make_target(tmp_path: Path) -> None:
    made = [line for line in COMMANDS if line.startswith("make ")]
    assert made == ["make demo", "make test"]
    assert all(line.startswith(("make ", "vistok ")) for line in COMMANDS if line)
    shutil.copy(ROOT / "Makefile", tmp_path)
    for name in ("pyproject.toml", ".ci"):
        os.symlink(ROOT / name, tmp_path / name)
    for line in made:
        subprocess.run([*line.split(), "--dry-run"], cwd=tmp_path, check=True, capture_output=True)


def test_the_method_that_the_readme_adds_works() -> None:
    (code,) = [code for language, code in BLOCKS if language == "python" and "@register" in code]
    names: dict[str, object] = {"__name__": "vistok.pruning.from_readme"}
    exec(compile(code, "README.md", "exec"), names)
    tokens = TokenTensor(TokenSpec("x"), embeds=torch.zeros(2, 5, 3))
    assert tokens.select(pruner("from_readme").select(tokens, 3)).num_slots == 3
