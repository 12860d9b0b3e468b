"""A run's settings, kept in its folder: who runs it again must mean the same, or stages that are done would not fit."""

import json
from collections.abc import Collection
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vistok.data.shard import write_atomic


def keep_settings(recipe: str, training: Any, out: Path, free: Collection[str]) -> None:
    """Write the settings, a dataclass, to `out/config.json`; `free` ones may change from run to run.

    Raises: ValueError if the file holds others that results there depend on.
    """
    file, settings = out / "config.json", json.loads(json.dumps(asdict(training)))
    if file.is_file():
        kept = json.loads(file.read_text(encoding="utf-8"))
        changed = [name for name, value in settings.items() if name not in free and kept.get(name) != value]
        if changed:
            told = ", ".join(f"{name} {kept.get(name)} there and {settings[name]} now" for name in changed)
            raise ValueError(f"{recipe}: {out} holds a run of other settings: {told}; name another folder")
    out.mkdir(parents=True, exist_ok=True)
    write_atomic(file, json.dumps(settings, indent=2).encode())
