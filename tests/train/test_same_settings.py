"""A run that is begun again goes on only if it means the same."""

import json
from dataclasses import dataclass, field, replace

import pytest

from vistok.train.same_settings import keep_settings


@dataclass(frozen=True)
class Settings:
    rate: float = 0.1
    sizes: tuple[int, ...] = (1, 2)
    model: dict[str, int] = field(default_factory=lambda: {"width": 3})
    threads: int = 0


def test_the_same_settings_and_other_free_ones_go_on_and_others_are_told(tmp_path):
    out = tmp_path / "run"
    keep_settings("recipe", Settings(), out, ("threads",))
    keep_settings("recipe", Settings(threads=2), out, ("threads",))
    assert json.loads((out / "config.json").read_text())["threads"] == 2
    with pytest.raises(ValueError, match="recipe: .*run holds a run of other settings: rate 0.1 there and 0.2 now"):
        keep_settings("recipe", replace(Settings(), rate=0.2), out, ("threads",))
    assert json.loads((out / "config.json").read_text())["rate"] == 0.1
