"""Reference tensors of the original authors' code: a folder named by VISTOK_PARITY, never part of this repository."""

import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from safetensors import safe_open
from torch import Tensor

DEFAULT = Path(__file__).parents[3] / "shared" / "parity"


class Case(NamedTuple):
    """One file: its `config` metadata and its tensors by name."""

    config: dict[str, Any]
    tensors: dict[str, Tensor]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """`@pytest.mark.parity(pattern, fits)` runs a test once per file whose config `fits`, or skips without a folder."""
    mark = metafunc.definition.get_closest_marker("parity")
    if mark is None:
        return
    pattern, fits = mark.args
    folder = Path(os.environ.get("VISTOK_PARITY", DEFAULT))
    if not folder.is_dir():
        skip = pytest.mark.skip(reason=f"no parity data: VISTOK_PARITY is unset or wrong, tried {folder}")
        metafunc.parametrize("path", [pytest.param(None, marks=skip, id="no-parity-folder")])
        return
    paths = [path for path in sorted(folder.glob(pattern)) if fits(read(path).config)]
    metafunc.parametrize("path", [pytest.param(path, id=path.stem) for path in paths])


@pytest.fixture
def case(path: Path) -> Case:
    return read(path)


def read(path: Path) -> Case:
    """One file of reference tensors."""
    with safe_open(path, framework="pt") as file:
        names = file.keys()
        return Case(json.loads(file.metadata()["config"]), {name: file.get_tensor(name) for name in names})
