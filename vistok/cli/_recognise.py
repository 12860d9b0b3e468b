"""Which preset a checkpoint of others belongs to: the one whose network has exactly its tensors, by name and shape."""

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from vistok.config import Config, deep_merge
from vistok.registry import create, names, resolve, settings_with
from vistok.weights import misfits, read_checkpoint, stored_settings

_SHOWN = 3


def recognise(checkpoint: str, *, trust: bool = False, settings: dict[str, Any] | None = None) -> str:
    """The one tokenizer preset that a checkpoint fits, once its keys are renamed as the method does.

    Presets are tried as they are, under `settings`; if none fits, also with what the checkpoint's config.json says.
    Networks are built without values, so that only the checkpoint takes memory. Raises: ValueError naming the presets,
    if several fit; or what the closest one misses, if none does.
    """
    tensors: dict[tuple[str, ...], dict[str, Tensor]] = {}
    unknown: list[str] = []
    unreadable: list[ValueError] = []
    tried: list[dict[str, list[str]]] = []
    for stored in (False, True) if stored_settings(checkpoint) else (False,):
        problems: dict[str, list[str]] = {}
        for name in names("tokenizer"):
            config = resolve("tokenizer", name)
            try:
                model = _network(config, checkpoint if stored else None, settings or {})
            except ImportError as error:
                unknown.append(f"{name} ({error})")
                continue
            if model is None:
                continue
            under = tuple(getattr(model, "weights_under", ()))
            if under not in tensors:
                tensors[under] = _without_values(checkpoint, trust, under, unreadable)
            try:
                renamed = getattr(model, "rename_keys", dict)(tensors[under])
            except ValueError:  # what the method knows of its weights is not there
                continue
            problems[name] = misfits(model, renamed)
        fitting = _most_specific([name for name, found in problems.items() if not found])
        if len(fitting) == 1:
            return fitting[0]
        if fitting:
            raise ValueError(f"{checkpoint} fits the networks of {', '.join(fitting)} alike; say which with --as")
        if not any(tensors.values()):
            raise unreadable[0]
        tried.append(problems)
    count, closest, shown = min((len(found), name, found) for problems in tried for name, found in problems.items())
    raise ValueError(
        f"{checkpoint} fits the network of no preset; the closest is {closest}, with {count} differences: "
        f"{'; '.join(shown[:_SHOWN])}; give --as PRESET, and --settings where its sizes are not the preset's"
        + (f". Not looked at: {'; '.join(sorted(set(unknown)))}" if unknown else "")
    )


def _most_specific(fitting: list[str]) -> list[str]:
    """Presets without those that stand for a whole method, where one of that method's own fits too."""
    configs = {name: resolve("tokenizer", name) for name in fitting}
    specific = {config.method for name, config in configs.items() if name != config.method or config.weights}
    return [
        name
        for name, config in configs.items()
        if name != config.method or config.weights or config.method not in specific
    ]


def _without_values(
    checkpoint: str, trust: bool, under: tuple[str, ...], unreadable: list[ValueError]
) -> dict[str, Tensor]:
    """A checkpoint's tensors on the meta device; none, and the error kept, where a method would not find any in it."""
    try:
        found = read_checkpoint(checkpoint, trust=trust, under=under)[1]
    except ValueError as error:
        unreadable.append(error)
        return {}
    return {key: torch.empty_like(value, device="meta") for key, value in found.items()}


def _network(config: Config, checkpoint: str | None, settings: dict[str, Any]) -> nn.Module | None:
    """A preset's network on the meta device; None where settings are those of another method."""
    try:
        if checkpoint is None and not settings:
            return _preset_network(config.name)
        own = config.settings if checkpoint is None else settings_with("tokenizer", config, checkpoint)
        with torch.device("meta"):
            built: nn.Module = create("tokenizer", config.name, **deep_merge(own, settings))
    except (TypeError, ValueError):
        return None
    return built


@cache
def _preset_network(name: str) -> nn.Module:
    """A preset as it is, on the meta device; kept, as all presets together take seconds to build."""
    with torch.device("meta"):
        built: nn.Module = create("tokenizer", name)
    return built
