import os

import pytest

from vistok.data.inputs.matching import matching


@pytest.fixture
def tree(tmp_path, monkeypatch):
    for name in ("a.jpg", "b.txt", ".hidden.jpg", "one/c.jpg", "one/two/d.jpg", "other/e.jpg", "other/x.jpg/f.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("*.jpg", ["a.jpg"]),
        (".*.jpg", [".hidden.jpg"]),
        ("one/*.jpg", ["c.jpg"]),
        ("o*/[ce].jpg", ["one/c.jpg", "other/e.jpg"]),
        ("o??", ["one/c.jpg", "one/two/d.jpg"]),
        ("*/two/d.jpg", ["one/two/d.jpg"]),
        ("**/*.jpg", ["a.jpg", "one/c.jpg", "one/two/d.jpg", "other/e.jpg", "other/x.jpg/f.png"]),
        ("one/**", ["c.jpg", "two/d.jpg"]),
        ("**/two/*", ["one/two/d.jpg"]),
        ("o*/**/d.jpg", ["one/two/d.jpg"]),
        ("nothing/*.jpg", []),
        ("a.jpg/*", []),
    ],
)
def test_a_pattern_names_files_and_what_is_below_folders(tree, pattern, names):
    for root in ("", f"{tree}/"):
        try:
            found = list(matching(root + pattern).names)
        except (FileNotFoundError, NotADirectoryError):
            found = []
        assert found == names


def test_names_are_below_the_part_without_wildcards(tree):
    found = matching(f"{tree}/one/*/d.jpg")
    assert found.root == tree / "one" and found.names == ("two/d.jpg",)


def test_a_linked_folder_is_searched_once(tree):
    (tree / "one" / "loop").symlink_to(tree)
    assert [name for name in matching("**/*.jpg").names if "loop" in name] == []
    assert matching("one/loop/*.jpg").names == ("a.jpg",)


@pytest.mark.parametrize("pattern", ["*/*.jpg", "**/*.jpg"])
def test_an_unreadable_folder_is_a_problem(tree, monkeypatch, pattern):
    listdir, scandir = os.listdir, os.scandir

    def refusing(path, list_it):
        if str(path).endswith("other"):
            raise PermissionError(13, "Permission denied", str(path))
        return list_it(path)

    monkeypatch.setattr(os, "listdir", lambda path: refusing(path, listdir))
    monkeypatch.setattr(os, "scandir", lambda path: refusing(path, scandir))
    found = matching(pattern)
    assert "one/c.jpg" in found.names
    assert [(problem.key, "PermissionError" in problem.problem) for problem in found.problems] == [("other", True)]


def test_a_broken_link_that_matches_is_kept_to_be_reported(tree):
    (tree / "gone.jpg").symlink_to("nowhere")
    assert matching("*.jpg").names == ("a.jpg", "gone.jpg")
