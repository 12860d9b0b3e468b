"""YAML presets: a name is a file `configs/<folder>/<name>.yaml` that says its method and the method's settings."""

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from importlib.resources import files
from importlib.resources.abc import Traversable
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import yaml

RESERVED = ("method", "base", "tiny", "tune", "weights", "summary")


@dataclass(frozen=True)
class Config:
    """One preset: `settings` go to the method's constructor, `tiny` overrides them for the contract tests.

    weights: what `vistok.weights.locate` takes, mostly `embedded:name`; None if there are none.
    """

    folder: str
    name: str
    method: str
    settings: dict[str, Any] = field(default_factory=dict)
    tiny: dict[str, Any] = field(default_factory=dict)
    weights: str | None = None
    summary: str = ""


def config_dir(folder: str) -> Traversable:
    """The folder of presets of one kind, in a checkout as in a wheel."""
    return files("vistok.configs").joinpath(folder)


def config_names(folder: str) -> list[str]:
    """Names of all presets in a folder, sorted."""
    root = config_dir(folder)
    if not root.is_dir():
        return []
    return sorted(entry.name.removesuffix(".yaml") for entry in root.iterdir() if entry.name.endswith(".yaml"))


def load_config(folder: str, name: str) -> Config:
    """Read one preset; `base:` names a parent preset of the same folder, deep-merged under it.

    Raises: KeyError naming close matches if there is no such preset; ValueError if the file is malformed.
    """
    raw = merge_base(read_yaml(folder, name), lambda parent: read_yaml(folder, parent))
    if not isinstance(raw.get("method"), str):
        raise ValueError(f"configs/{folder}/{name}.yaml: expected `method:` to name a file, got {raw.get('method')!r}")
    settings = {key: value for key, value in raw.items() if key not in RESERVED}
    return Config(
        folder, name, raw["method"], settings, raw.get("tiny") or {}, raw.get("weights"), raw.get("summary", "")
    )


def read_yaml(folder: str, name: str) -> dict[str, Any]:
    """The mapping in `configs/<folder>/<name>.yaml`, `base:` unresolved. Raises: as load_config."""
    path = config_dir(folder).joinpath(f"{name}.yaml")
    if not path.is_file():
        raise KeyError(unknown(f"configs/{folder} name", name, config_names(folder)))
    return parse_yaml(path.read_text(encoding="utf-8"), f"configs/{folder}/{name}.yaml")


def parse_yaml(text: str, owner: str) -> dict[str, Any]:
    """The mapping in a YAML text. Raises: ValueError, beginning with `owner`, if it is none."""
    try:
        raw = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"{owner}: expected YAML, got {error}") from error
    if not isinstance(raw, dict):
        raise ValueError(f"{owner}: expected a mapping, got {type(raw).__name__}")
    return raw


def merge_base(raw: dict[str, Any], read: Callable[[str], dict[str, Any]]) -> dict[str, Any]:
    """Resolve `base:` (one parent each) by deep merge, the child's values first.

    Raises: ValueError if a preset is its own ancestor.
    """
    chain: list[dict[str, Any]] = [raw]
    seen: list[str] = []
    while "base" in chain[-1]:
        parent = chain[-1]["base"]
        if parent in seen:
            raise ValueError(
                f"base: expected presets that end somewhere, got the circle {' -> '.join([*seen, parent])}"
            )
        seen.append(parent)
        chain.append(read(parent))
    merged: dict[str, Any] = {}
    for preset in reversed(chain):
        merged = deep_merge(merged, {key: value for key, value in preset.items() if key != "base"})
    return merged


def deep_merge(under: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`over` on top of `under`; mappings that carry the same `method` are merged, all else is replaced."""
    merged = dict(under)
    for key, value in over.items():
        below = merged.get(key)
        nests = (
            isinstance(value, dict) and isinstance(below, dict) and value.get("method", "") == below.get("method", "")
        )
        merged[key] = deep_merge(below, value) if nests else value  # type: ignore[arg-type]
    return merged


def check_settings(owner: str, build: Callable[..., Any], settings: Iterable[str]) -> None:
    """Raise TypeError naming the allowed settings if `build` does not take one of `settings`."""
    parameters = inspect.signature(build).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return
    allowed = [parameter.name for parameter in parameters]
    for name in settings:
        if name not in allowed:
            raise TypeError(unknown(f"{owner} setting", name, allowed))


def check_types(owner: str, build: type, settings: Mapping[str, Any]) -> None:
    """Raise TypeError naming the setting whose value is not of the type that the dataclass `build` gives it.

    Whole numbers do for float, lists for tuples, and everything for what a mapping holds.
    """
    hints = get_type_hints(build)
    for name, value in settings.items():
        if not _is_of(value, hints[name]):
            hint = hints[name].__name__ if isinstance(hints[name], type) else hints[name]
            raise TypeError(f"{owner} setting {name!r}: expected {hint}, got {value!r}{_yaml_hint(value)}")


def _is_of(value: Any, hint: Any) -> bool:
    origin, inside = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return any(_is_of(value, option) for option in inside)
    if origin is list or (origin is tuple and inside[-1] is Ellipsis):
        return isinstance(value, (list, tuple)) and all(_is_of(item, inside[0]) for item in value)
    if hint in (int, float):
        return isinstance(value, int if hint is int else (int, float)) and not isinstance(value, bool)
    plain = origin or hint
    return not isinstance(plain, type) or isinstance(value, plain)


def _yaml_hint(value: Any) -> str:
    """What to write instead of a number that YAML 1.1 takes for text, as it does without a point: 3e-3."""
    for item in value if isinstance(value, list) else [value]:
        try:
            number = float(item) if isinstance(item, str) else None
        except ValueError:
            continue
        if number is not None:
            return f"; YAML reads {item} as text here, write {number!r}"
    return ""


def unknown(what: str, name: str, known: Iterable[str]) -> str:
    """One sentence for a name that does not exist: the closest ones first, else all."""
    known = list(known)
    close = get_close_matches(name, known, n=3, cutoff=0.5)
    return f"no {what} {name!r}; " + (
        f"did you mean {', '.join(close)}?" if close else f"there are: {', '.join(known)}"
    )
