"""No reference file of discrete tokenizers lies there uncompared."""

from pathlib import Path

import pytest

from . import test_discrete, test_seed
from .conftest import read


@pytest.mark.parity("discrete/*.safetensors", lambda config: True)
def test_every_file_is_compared_by_some_test(path: Path) -> None:
    tests = [*vars(test_discrete).values(), *vars(test_seed).values()]
    marks = [mark for test in tests for mark in getattr(test, "pytestmark", ())]
    # What asks every file of SEED for its kind compares nothing.
    rules = [mark.args for mark in marks if mark.name == "parity" and mark.args[0] != "discrete/seed_*"]
    rules.append(test_seed.whole_tokenizer.mark.args)
    folder, config = path.parent.parent, read(path).config
    assert any(path in folder.glob(pattern) and fits(config) for pattern, fits in rules), (
        f"nothing compares {path.name}"
    )
