"""What a comparison of pruners is made of: a name or a YAML file becomes a method, its settings, and others to try.

A file says `base:` or `method:` (a name of `vistok.list_pruners()`), settings, `weights:` where the method is trained,
and, as presets may too, `tune:` with values to try for some settings: every combination of them is a candidate. With
`input: {base: NAME, factor: F}` another pruner comes first and keeps F times the budget, of which the method keeps 1/F.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

from torch import nn

from vistok.config import RESERVED, config_names, deep_merge, merge_base, parse_yaml, read_yaml
from vistok.lvlm.downsample import NAME as DOWNSAMPLE
from vistok.lvlm.downsample import EvenlySpaced
from vistok.protocols import Pruner
from vistok.registry import FOLDERS, create, resolve
from vistok.weights import fingerprint

BASELINES = ("random", "uniform", "pool", DOWNSAMPLE)

_FOLDER = FOLDERS["pruner"]


@dataclass(frozen=True)
class Built:
    """Pruners in the order in which tokens meet them, at most two; identity: all that they depend on, for JSON.

    factor: of the budget, what the first of two keeps.
    """

    pruners: list[Any]
    identity: dict[str, Any]
    factor: float = 1.0

    def budgets(self, share: float) -> list[float]:
        """What each of them keeps of the tokens that it meets, so that `share` of all is left."""
        if len(self.pruners) < 2:
            return [share] * len(self.pruners)
        first = min(1.0, self.factor * share)
        return [first, share / first]


@dataclass(frozen=True)
class Method:
    """name: of its row. preset: a name of `vistok.list_pruners()`; settings and weights on top of the preset's own.

    candidates: settings on top of these to choose among.
    """

    name: str
    preset: str
    settings: dict[str, Any] = field(default_factory=dict)
    weights: str | None = None
    candidates: tuple[dict[str, Any], ...] = ({},)

    def build(self, candidate: Mapping[str, Any]) -> Built:
        """Its pruners. Raises: ValueError if one is to be trained and has no weights; TypeError for a wrong setting."""
        if self.name == DOWNSAMPLE:
            return Built([EvenlySpaced()], {"method": DOWNSAMPLE})
        settings = deep_merge(self.settings, dict(candidate))
        before = settings.pop("input", None)
        own, identity = _build(self.name, self.preset, settings, self.weights)
        if before is None:
            return Built([own], identity)
        named = {"base", "factor", "weights"}
        if not isinstance(before, dict) or not isinstance(before.get("base"), str) or not before.get("factor", 0) >= 1:
            raise ValueError(f"{self.name}: expected `input:` with base, a name, and factor >= 1, got {before!r}")
        rest = {key: value for key, value in before.items() if key not in named}
        first, first_identity = _build(self.name, before["base"], rest, before.get("weights"))
        if not isinstance(first, Pruner):
            raise ValueError(f"{self.name}: expected a pruner of the decoder's input as `input:`, got {before['base']}")
        factor = float(before["factor"])
        return Built([first, own], identity | {"input": first_identity | {"factor": factor}}, factor)


def _build(owner: str, name: str, settings: dict[str, Any], weights: str | None) -> tuple[Any, dict[str, Any]]:
    """The pruner of a preset, and all that it depends on."""
    preset = resolve("pruner", name)
    weights = weights or preset.weights
    built = create("pruner", name, checkpoint=weights, **settings)
    identity = {"method": preset.method, "settings": deep_merge(preset.settings, settings)}
    if isinstance(built, nn.Module):
        if weights is None and any(True for _ in built.parameters()):
            raise ValueError(
                f"{owner}: expected weights, for {name} has to be trained; write a YAML file with `base: {name}` and "
                "`weights: FOLDER`, and name that file as the method"
            )
        built.eval()
        identity["weights"] = fingerprint(built, {})
    return built, identity


def find_method(name: str) -> Method:
    """The method of a name or of a YAML file, whose row is called as the file.

    Raises: KeyError naming close matches; FileNotFoundError; ValueError if a file names no method or `tune:` is no
    mapping from settings to lists.
    """
    if name == DOWNSAMPLE:
        return Method(name, name)
    path = Path(name)
    if path.suffix not in (".yaml", ".yml"):
        resolve("pruner", name)
        raw = _merged(read_yaml(_FOLDER, name)) if name in config_names(_FOLDER) else {}
        return Method(name, name, candidates=_candidates(name, raw.get("tune")))
    if not path.is_file():
        raise FileNotFoundError(f"--methods: no such file: {name}")
    raw = parse_yaml(path.read_text(encoding="utf-8"), name)
    preset = raw.get("base", raw.get("method"))
    if not isinstance(preset, str):
        raise ValueError(f"{name}: expected `base:` with the name of a pruner, as `vistok list` shows them")
    resolve("pruner", preset)
    settings = {key: value for key, value in raw.items() if key not in RESERVED}
    return Method(path.stem, preset, settings, raw.get("weights"), _candidates(name, raw.get("tune")))


def find_methods(names: list[str]) -> list[Method]:
    """The baselines, then what else is named. Raises: as `find_method`; ValueError if two rows had one name."""
    found = [find_method(name) for name in dict.fromkeys((*BASELINES, *names))]
    rows = [method.name for method in found]
    twice = sorted({name for name in rows if rows.count(name) > 1})
    if twice:
        raise ValueError(f"--methods: expected names that differ, got {', '.join(twice)} twice; rename a file")
    return found


def _merged(raw: dict[str, Any]) -> dict[str, Any]:
    return merge_base(raw, lambda parent: read_yaml(_FOLDER, parent))


def _candidates(owner: str, tune: Any) -> tuple[dict[str, Any], ...]:
    if tune is None:
        return ({},)
    if not isinstance(tune, dict) or not all(isinstance(values, list) and values for values in tune.values()):
        raise ValueError(f"{owner}: expected `tune:` to map settings to lists of values, got {tune!r}")
    combinations = product(*tune.values())
    return tuple(dict(zip(tune, values, strict=True)) for values in combinations)
