"""Every notebook runs from top to bottom as a notebook, asks a question, draws a figure and asserts what it found."""

import ast
from pathlib import Path

import jupytext
import pytest
from nbclient import NotebookClient
from nbformat import NotebookNode

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.py"))
SECONDS = 600  # for a cell, so that one which hangs fails; no promise about speed


def read(path: Path) -> NotebookNode:
    return jupytext.read(path, fmt="py:percent")


def images(cell: NotebookNode) -> int:
    return sum("image/png" in output.get("data", {}) for output in cell.get("outputs", []))


def test_there_are_notebooks_and_they_are_numbered_from_one() -> None:
    assert [path.stem[:3] for path in NOTEBOOKS] == [f"{number:02}_" for number in range(1, len(NOTEBOOKS) + 1)] != []


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_opens_with_a_question_and_ends_with_asserts(path: Path) -> None:
    book = read(path)
    first, last = book.cells[0], book.cells[-1]
    assert book.metadata["kernelspec"]["name"] == "python3"
    number = int(path.stem[:2])
    assert first.cell_type == "markdown" and first.source.startswith(f"# {number}. ")
    assert first.source.endswith("?") and "?" not in first.source[:-1], "one question, at the end of the first cell"
    tree = ast.parse(last.source)
    asserts = [node for node in ast.walk(tree) if isinstance(node, ast.Assert)]
    assert last.cell_type == "code" and isinstance(tree.body[-1], ast.Assert), "the last line of all is an assert"
    assert len(asserts) >= 2 and not any(isinstance(node.test, ast.Constant) for node in asserts)


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
# What the kernel's own libraries warn of is not ours; the notebook's warnings are looked at below.
@pytest.mark.filterwarnings("default")
def test_a_notebook_runs_from_top_to_bottom_and_draws(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VISTOK_FAST", "1")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # as all tests: a process for each core is there already
    book = read(path)
    client = NotebookClient(book, timeout=SECONDS, resources={"metadata": {"path": str(path.parent)}})
    client.execute()
    assert any(images(cell) for cell in book.cells), "expected a figure that answers the question"
    errors = [out.text for cell in book.cells for out in cell.get("outputs", []) if out.get("name") == "stderr"]
    assert not errors, errors


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_a_notebook_whose_assert_does_not_hold_fails(tmp_path: Path) -> None:
    file = tmp_path / "99_wrong.py"
    file.write_text("# %% [markdown]\n# # 99. Wrong\n#\n# Is it?\n\n# %%\nassert 1 + 1 == 3\n")
    with pytest.raises(Exception, match="AssertionError"):
        NotebookClient(read(file), timeout=SECONDS, kernel_name="python3").execute()
