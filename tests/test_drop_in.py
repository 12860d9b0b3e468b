"""A new method is two files: dropped into a copy of the tree, it is listed, built and held to the contract."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
METHOD = '''"""Keeps the first tokens."""

from typing import Any

import torch

from vistok.ops.budget import as_selection, kept_tokens
from vistok.protocols import Budget
from vistok.registry import register
from vistok.tokens import Selection, TokenTensor


@register
class Mine:
    """Keeps the first tokens."""

    cannot: frozenset[str] = frozenset()
    needs: frozenset[str] = frozenset()

    def __init__(self, *, flavour: str = "plain") -> None:
        self.flavour = flavour

    def select(self, tokens: TokenTensor, budget: Budget, **context: Any) -> Selection:
        if context:
            raise TypeError(f"mine: unexpected context {', '.join(context)}; it takes none")
        slots, counts = kept_tokens(tokens, budget)
        index = torch.arange(slots, device=tokens.device).expand(len(tokens), -1).contiguous()
        return as_selection(tokens, index, counts, budget)
'''
CONFIG = "summary: the first tokens\nmethod: mine\nflavour: sweet\ntiny: {}\n"
USE = """
import vistok
assert vistok.list_pruners("mi*") == ["mine"] and "uniform" in vistok.list_pruners(), vistok.list_pruners()
mine = vistok.pruner("mine")
assert (type(mine).__module__, mine.flavour) == ("vistok.pruning.mine", "sweet")
assert vistok.pruner("mine", flavour="sour").flavour == "sour"
assert vistok.info("pruner", "mine").summary == "the first tokens"
"""


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of the tree with two more files, and not one edit."""
    ignore = shutil.ignore_patterns("__pycache__", "*.safetensors")
    for name in ("vistok", "configs", "triton_kernels"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=ignore)
    (tmp_path / "tests").mkdir()
    for name in ("pyproject.toml", "tests/conftest.py", "tests/test_contract_pruners.py"):
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "vistok/pruning/mine.py").write_text(METHOD)
    (tmp_path / "configs/pruning/mine.yaml").write_text(CONFIG)
    return tmp_path


def python(tree: Path, *args: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(tree)}
    return subprocess.run(
        [sys.executable, *args], cwd=tree, env=environment, capture_output=True, text=True, check=False
    )


def test_two_files_make_a_method(tree: Path) -> None:
    done = python(tree, "-c", USE)
    assert done.returncode == 0, done.stderr


def contract(tree: Path, *args: str) -> str:
    done = python(tree, "-m", "pytest", "-p", "no:cacheprovider", "-k", "mine", *args, "tests/test_contract_pruners.py")
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_contract_tests_pick_it_up(tree: Path) -> None:
    collected = [line for line in contract(tree, "--collect-only", "-q").splitlines() if "::" in line]
    assert len(collected) > 5 and all("mine" in line for line in collected)


@pytest.mark.slow
def test_it_passes_the_contract_tests(tree: Path) -> None:
    assert " passed" in contract(tree)
