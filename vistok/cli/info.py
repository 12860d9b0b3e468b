"""Tell what a name stands for: settings, weights, parameters, licence."""

from pathlib import Path
from typing import Any

import torch
import yaml
from rich import box
from rich.console import Console
from rich.table import Table
from safetensors import safe_open
from torch import nn

from vistok.config import Config, deep_merge, unknown
from vistok.registry import FOLDERS, create, method, names
from vistok.registry import info as preset
from vistok.report.json_file import write_json
from vistok.weights import locate, stored_settings, weight_file


def info(name: str, kind: str | None = None, *, json: str | None = None) -> None:
    """Tell what a name stands for: settings, weights, parameters, licence and model card.

    Args:
        name: as `vistok list` shows it.
        kind: tokenizer, pruner, quantizer, readout or codec, if several have this name.
        json: file to write the same to, one entry for each kind.
    """
    if kind is not None and kind not in FOLDERS:
        raise KeyError(unknown("kind", kind, FOLDERS))
    found = {each: names(each) for each in FOLDERS if kind in (None, each)}
    kinds = [each for each, known in found.items() if name in known]
    if not kinds:
        raise KeyError(unknown(kind or "name", name, sorted({other for known in found.values() for other in known})))
    facts = {each: _facts(each, preset(each, name)) for each in kinds}
    console = Console(markup=False, highlight=False)
    for each in kinds:
        table = Table(show_header=False, box=box.SIMPLE)
        table.add_column(no_wrap=True)
        table.add_column(overflow="fold")
        for fact, value in facts[each].items():
            table.add_row(fact, _shown(value))
        console.print(table)
    if json is not None:
        write_json(json, facts)


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return "\n".join(f"{setting}: {choice}" for setting, choice in value.items()) or "-"
    return f"{value:,}" if isinstance(value, int) else str(value or "-")


def _facts(kind: str, config: Config) -> dict[str, Any]:
    """What there is to say about one preset, in order."""
    folder = _local_weights(config)
    settings = config.settings if folder is None else deep_merge(config.settings, stored_settings(folder))
    build = method(kind, config.method)
    facts = {
        "name": config.name,
        "kind": kind,
        "summary": config.summary,
        "method": f"{config.method} ({build.__module__})",
        "settings": settings,
        **_sizes(kind, config.name, settings),
        "weights": config.weights or "none",
    }
    return facts if folder is None else facts | _file_facts(folder)


def _local_weights(config: Config) -> Path | None:
    """The folder of weights that are on this machine; looking a name up downloads nothing."""
    if config.weights is None or config.weights.startswith("hf:"):
        return None
    return locate(config.weights)


def _file_facts(folder: Path) -> dict[str, Any]:
    file = weight_file(folder)
    card = folder / "README.md"
    facts: dict[str, Any] = {"file": str(file), "bytes": file.stat().st_size}
    if file.suffix == ".safetensors":
        with safe_open(file, framework="pt") as tensors:
            stored = tensors.keys()
            facts["stored as"] = ", ".join(sorted({tensors.get_slice(key).get_dtype() for key in stored}))
    return facts | {"licence": _licence(card), "model card": str(card) if card.is_file() else "none"}


def _licence(card: Path) -> str:
    """The `license:` of a model card's YAML header."""
    if not card.is_file():
        return "not stated"
    parts = card.read_text(encoding="utf-8").split("---\n", 2)
    header: Any = yaml.safe_load(parts[1]) if len(parts) == 3 and not parts[0].strip() else None
    return str(header["license"]) if isinstance(header, dict) and "license" in header else "see the model card"


def _sizes(kind: str, name: str, settings: dict[str, Any]) -> dict[str, int]:
    # On the meta device no memory is taken and nothing is drawn at random.
    with torch.device("meta"):
        built = create(kind, name, **settings)
    if not isinstance(built, nn.Module):
        return {}
    return {
        "parameters": sum(parameter.numel() for parameter in built.parameters()),
        "stored values": sum(value.numel() for value in built.state_dict().values()),
    }


COMMAND = info
