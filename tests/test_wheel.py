"""The wheel in a clean environment: it holds vistok and nothing else, and works far from the checkout."""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parent.parent


def check(*command: str | Path, cwd: Path) -> str:
    """Run a command that must succeed, with nothing of this process's Python settings; returns its stdout."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run([*map(str, command)], cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, because setuptools leaves a build/ folder whose old files get into the next wheel."""
    tree = tmp_path_factory.mktemp("tree")
    ignore = shutil.ignore_patterns("__pycache__")
    for name in ("vistok", "configs", "triton_kernels", "tests"):
        shutil.copytree(ROOT / name, tree / name, ignore=ignore)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree / name)
    check(sys.executable, "-P", "-m", "build", "--wheel", "--outdir", tree / "dist", tree, cwd=tree)
    (built,) = (tree / "dist").iterdir()
    return built


@pytest.fixture(scope="module")
def clean(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `bin` folder of an environment with the wheel, the libraries of this one, and a foreign triton_kernels.

    The libraries come by a line in a .pth file: installing them once more would take minutes and gigabytes. Python does
    not read .pth files in a folder added in this way, so an editable vistok beside those libraries stays out of sight.
    """
    home = tmp_path_factory.mktemp("clean")
    venv.create(home, with_pip=False, symlinks=True)
    site = Path(sysconfig.get_path("purelib", vars={"base": str(home), "platbase": str(home)}))
    libraries = dict.fromkeys(sysconfig.get_path(name) for name in ("purelib", "platlib"))
    python = home / "bin" / "python"
    pip = (sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", "--quiet")
    check(*pip, wheel, cwd=home)
    (site / "libraries.pth").write_text("\n".join(libraries))
    (site / "triton_kernels").mkdir()
    (site / "triton_kernels" / "__init__.py").write_text("OWNER = 'somebody else'\n")
    return home / "bin"


def test_it_holds_nothing_outside_vistok_and_its_metadata(wheel: Path) -> None:
    tops = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert tops == {"vistok", "vistok-0.1.0.dist-info"}


def test_it_holds_every_file_of_the_package(wheel: Path) -> None:
    places = {"vistok": "vistok", "configs": "vistok/configs", "triton_kernels": "vistok/triton_kernels"}
    wanted = {
        f"{inside}/{path.relative_to(ROOT / top).as_posix()}"
        for top, inside in places.items()
        for path in (ROOT / top).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    held = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("vistok/")}
    assert held == wanted


def test_its_metadata_names_no_index_and_no_upper_bound_of_torch(wheel: Path) -> None:
    metadata = zipfile.ZipFile(wheel).read("vistok-0.1.0.dist-info/METADATA").decode()
    header = metadata.partition("\n\n")[0]
    assert "Requires-Dist: torch>=2.6\n" in header and "License-Expression: Apache-2.0" in header
    assert "://" not in "\n".join(line for line in header.splitlines() if line.startswith("Requires-Dist"))


def test_vistok_comes_from_the_wheel(clean: Path, tmp_path: Path) -> None:
    where = check(clean / "python", "-c", "import vistok; print(*vistok.__path__)", cwd=tmp_path).strip()
    assert Path(where).is_relative_to(clean.parent)


def test_the_command_lists_names_away_from_the_checkout(clean: Path, tmp_path: Path) -> None:
    listed = check(clean / "vistok", "list", cwd=tmp_path)
    assert all(name in listed for name in ("vq_nano", "kl_nano", "k_center", "fsq"))
    assert check(clean / "vistok", "--version", cwd=tmp_path) == "vistok 0.1.0\n"


@pytest.mark.parametrize("name", ["vq_nano", "kl_nano"])
def test_embedded_weights_decode(clean: Path, tmp_path: Path, name: str) -> None:
    program = (
        "import torch, vistok; from skimage import data\n"
        "image = torch.from_numpy(data.astronaut()[:128, 128:256]).permute(2, 0, 1)[None] / 255\n"
        f"model = vistok.tokenizer({name!r}, pretrained=True)\n"
        "with torch.inference_mode(): back = model.decode(model.encode(image))\n"
        "print(float(-10 * (back - image).square().mean().log10()))"
    )
    # Far above what noise, a grey picture or untrained weights reach.
    assert float(check(clean / "python", "-W", "ignore", "-c", program, cwd=tmp_path)) > 18


@pytest.mark.parametrize("cwd", ["elsewhere", "checkout"])
def test_a_foreign_triton_kernels_still_imports(clean: Path, tmp_path: Path, cwd: str) -> None:
    program = "import vistok, vistok.triton_kernels as own, triton_kernels; print(triton_kernels.OWNER, *own.__path__)"
    folder = ROOT if cwd == "checkout" else tmp_path
    # In the checkout, without -P, Python would otherwise take the vistok that lies there; the foreign package must win
    # over the folder triton_kernels/ even so.
    out = check(clean / "python", "-c", program, cwd=folder)
    assert out.startswith("somebody else ")
