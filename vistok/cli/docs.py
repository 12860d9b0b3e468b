"""Write the API reference: HTML pages of every public module, class and function, from their docstrings."""

import os
import shutil
from pathlib import Path

import vistok

_FIRST_PAGE = "vistok.html"
_PAGES = {_FIRST_PAGE, "vistok", "index.html", "search.js"}


def docs(out: str) -> None:
    """Write the API reference to OUT, to be opened at index.html; it needs the extra docs (pdoc).

    Args:
        out: folder to write, new or of an earlier reference.
    """
    try:
        from pdoc import pdoc, render
    except ImportError:
        raise ValueError("docs: expected pdoc to be installed; pip install 'vistok[docs]'") from None
    folder = Path(out).resolve()
    if folder.exists() and not _may_go(folder):
        raise ValueError(
            f"{out}: expected a new folder, or that of an earlier reference and nothing else, got other things there; "
            "name another"
        )
    for name in vistok.__all__:
        setattr(vistok, name, getattr(vistok, name))  # lazy names are invisible to pdoc until the module holds them
    render.configure(docformat="google", show_source=False)
    partial = folder.with_name(f"{folder.name}.tmp.{os.getpid()}")
    try:
        pdoc(*_modules(), output_directory=partial)
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    print(f"{Path(out, 'index.html')}")


def _may_go(folder: Path) -> bool:
    """Whether there is nothing at a place, or an earlier reference, but no file of anybody else."""
    names = {entry.name for entry in folder.iterdir()} if folder.is_dir() else {""}
    return not names or ((folder / _FIRST_PAGE).is_file() and names <= _PAGES)


def _modules() -> list[str]:
    """vistok and what lies directly in it; pdoc goes down from there.

    Not by walking `vistok.__path__`, which in a checkout also holds the folders beside the package.
    """
    house = Path(vistok.__file__).parent
    below = {path.stem for path in house.glob("*.py")} | {path.parent.name for path in house.glob("*/__init__.py")}
    return ["vistok", *(f"vistok.{name}" for name in sorted(below) if not name.startswith("_"))]


COMMAND = docs
