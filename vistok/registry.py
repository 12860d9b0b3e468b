"""Names to objects: `vistok.tokenizer("vq_nano", pretrained=True)`, and the same for the other kinds.

A method is a file in its kind's folder that marks one class or function with `@register`; it is imported on demand.
"""

import os
import warnings
from collections.abc import Callable
from fnmatch import fnmatch
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, overload

from vistok.config import Config, check_settings, config_names, deep_merge, load_config, unknown

if TYPE_CHECKING:
    import torch

    from vistok.protocols import Codec, Pruner, Quantizer, Readout, Tokenizer

FOLDERS = {
    "tokenizer": "tokenizers",
    "pruner": "pruning",
    "quantizer": "quantizers",
    "readout": "readouts",
    "codec": "codecs",
}
_KINDS = {folder: kind for kind, folder in FOLDERS.items()}
_methods: dict[tuple[str, str], Callable[..., Any]] = {}

T = TypeVar("T", bound=Callable[..., Any])


@overload
def register(target: T) -> T: ...
@overload
def register(target: str) -> Callable[[T], T]: ...
def register(target: Any) -> Any:
    """Mark the object that a method file is about, or add your own under "kind/name".

    `@register` in `vistok/pruning/mine.py` is `@register("pruner/mine")`. Raises: ValueError if the kind is unknown
    or the name is taken.
    """
    if not isinstance(target, str):
        folder, _, stem = target.__module__.rpartition(".")
        kind = _KINDS.get(folder.removeprefix("vistok."))
        if kind is None:
            raise ValueError(f"register: {target.__module__} is in no method folder; use @register('pruner/name')")
        return register(f"{kind}/{stem}")(target)
    kind, _, name = target.partition("/")
    if kind not in FOLDERS or not name:
        raise ValueError(f"register: expected 'kind/name' with kind one of {', '.join(FOLDERS)}, got {target!r}")

    def add(obj: T) -> T:
        known = _methods.setdefault((kind, name), obj)
        # Reloading a file in a notebook registers the same object again under the same qualified name.
        if (known.__module__, known.__qualname__) != (obj.__module__, obj.__qualname__):
            raise ValueError(f"register: {target!r} is taken by {known.__module__}.{known.__qualname__}")
        _methods[(kind, name)] = obj
        return obj

    return add


def method(kind: str, name: str) -> Callable[..., Any]:
    """The class or function registered for a method, its file imported if need be.

    Raises: KeyError naming close matches.
    """
    _load_plugins()
    if (kind, name) not in _methods and name.isidentifier() and find_spec(f"vistok.{FOLDERS[kind]}.{name}"):
        import_module(f"vistok.{FOLDERS[kind]}.{name}")
    if (kind, name) not in _methods:
        files = find_spec(f"vistok.{FOLDERS[kind]}")
        folder = Path(next(iter(files.submodule_search_locations or ()))) if files else Path()
        stems = {path.stem for path in folder.glob("[!_]*.py")} | {own for k, own in _methods if k == kind}
        raise KeyError(unknown(f"{kind} method", name, sorted(stems)))
    return _methods[(kind, name)]


def resolve(kind: str, name: str) -> Config:
    """The preset of a name, or the bare method of that name with its defaults.

    Raises: KeyError naming close matches.
    """
    if name in config_names(FOLDERS[kind]):
        return load_config(FOLDERS[kind], name)
    _load_plugins()
    if (kind, name) in _methods:
        return Config(FOLDERS[kind], name, name)
    raise KeyError(unknown(kind, name, names(kind)))


def names(kind: str, pattern: str = "*", *, pretrained: bool = False) -> list[str]:
    """All names of a kind that match a shell pattern; `pretrained=True` leaves those with weights."""
    _load_plugins()
    own = [name for k, name in _methods if k == kind and not _in_package(k, name)]
    found = sorted({*config_names(FOLDERS[kind]), *own})
    found = [name for name in found if fnmatch(name, pattern)]
    return [name for name in found if resolve(kind, name).weights] if pretrained else found


def info(kind: str, name: str) -> Config:
    """What a name stands for: method, settings, weights, summary. Raises: KeyError naming close matches."""
    return resolve(kind, name)


def create(
    kind: str,
    name: str,
    *,
    pretrained: bool = False,
    checkpoint: str | os.PathLike[str] | None = None,
    trust: bool = False,
    dtype: "torch.dtype | None" = None,
    **overrides: Any,
) -> Any:
    """Build the object of a name: preset settings, then the checkpoint's own, then `overrides`; then its weights.

    trust: read checkpoints that hold programs (TorchScript) too.
    Raises: KeyError for an unknown name; TypeError for a setting the method does not take; ValueError if
    `pretrained=True` and the name has no weights, or if weights do not fit.
    """
    config = resolve(kind, name)
    if pretrained and checkpoint is None:
        if config.weights is None:
            raise ValueError(f"{kind} {name!r} has no pretrained weights; there are: {names(kind, pretrained=True)}")
        checkpoint = config.weights
    build_method = method(kind, config.method)
    settings = config.settings if checkpoint is None else settings_with(kind, config, checkpoint)
    settings = deep_merge(settings, overrides)
    check_settings(f"{kind} {name!r} (method {config.method})", build_method, settings)
    built = build_method(**settings)
    if hasattr(built, "name"):
        built.name = name
    if checkpoint is not None:
        from vistok.weights import load_weights

        load_weights(built, checkpoint, trust=trust)
    return built if dtype is None else built.to(dtype)


def settings_with(kind: str, config: Config, checkpoint: str | os.PathLike[str]) -> dict[str, Any]:
    """The settings of a preset under those that lie beside a checkpoint's weights.

    A method's `rename_settings`, if it has one, makes its own settings of a config.json that others wrote.
    """
    from vistok.weights import stored_settings

    build = method(kind, config.method)
    stored = stored_settings(checkpoint, build)
    rename = getattr(build, "rename_settings", None)
    return deep_merge(config.settings, stored if rename is None else rename(stored))


def tokenizer(name: str, **options: Any) -> "Tokenizer":
    """Build a tokenizer; options as `create`: pretrained, checkpoint, trust, dtype and the method's settings."""
    built: Tokenizer = create("tokenizer", name, **options)
    return built


def pruner(name: str, **options: Any) -> "Pruner":
    """Build a pruner; options as `create`."""
    built: Pruner = create("pruner", name, **options)
    return built


def quantizer(name: str, **options: Any) -> "Quantizer":
    """Build a quantizer; options as `create`."""
    built: Quantizer = create("quantizer", name, **options)
    return built


def readout(name: str, **options: Any) -> "Readout":
    """Build a readout; options as `create`."""
    built: Readout = create("readout", name, **options)
    return built


def codec(name: str, **options: Any) -> "Codec":
    """Build a perception codec; options as `create`."""
    built: Codec = create("codec", name, **options)
    return built


def list_tokenizers(pattern: str = "*", *, pretrained: bool = False) -> list[str]:
    """Names of tokenizers that match a shell pattern."""
    return names("tokenizer", pattern, pretrained=pretrained)


def list_pruners(pattern: str = "*") -> list[str]:
    """Names of pruners that match a shell pattern."""
    return names("pruner", pattern)


def list_quantizers(pattern: str = "*") -> list[str]:
    """Names of quantizers that match a shell pattern."""
    return names("quantizer", pattern)


def list_readouts(pattern: str = "*") -> list[str]:
    """Names of readouts that match a shell pattern."""
    return names("readout", pattern)


def list_codecs(pattern: str = "*") -> list[str]:
    """Names of perception codecs that match a shell pattern."""
    return names("codec", pattern)


def _in_package(kind: str, name: str) -> bool:
    return _methods[(kind, name)].__module__ == f"vistok.{FOLDERS[kind]}.{name}"


@cache
def _load_plugins() -> None:
    if os.environ.get("VISTOK_NO_PLUGINS") == "1":
        return
    for plugin in entry_points(group="vistok.plugins"):
        try:
            plugin.load()()
        except Exception as error:  # a broken plugin must not take vistok down with it
            warnings.warn(f"vistok plugin {plugin.name} ({plugin.value}) failed: {error!r}", stacklevel=2)
