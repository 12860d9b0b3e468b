import os
import socket

import pytest

from vistok.data.inputs.walk import walk


def refuse(monkeypatch, folder):
    """Let the system refuse to list one folder, which it does not do to root."""
    scandir = os.scandir

    def refusing(path):
        if os.fspath(path) == os.fspath(folder):
            raise PermissionError(13, "Permission denied", os.fspath(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)


def test_files_are_sorted_by_path_whatever_the_order_of_the_system(tmp_path, monkeypatch):
    for name in ("b", "a/z", "a.b", "C"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert walk(tmp_path).names == ("C", "a.b", "a/z", "b")


def test_an_unreadable_folder_is_a_problem_and_its_neighbours_are_listed(tmp_path, monkeypatch):
    for name in ("open/a", "shut/b"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    refuse(monkeypatch, tmp_path / "shut")
    found = walk(tmp_path)
    assert found.names == ("open/a",)
    (problem,) = found.problems
    assert problem.key == "shut" and "PermissionError" in problem.problem


def test_an_unreadable_top_folder_is_an_error(tmp_path, monkeypatch):
    refuse(monkeypatch, tmp_path)
    with pytest.raises(PermissionError):
        walk(tmp_path)


def test_a_broken_link_and_a_link_to_itself_are_problems(tmp_path):
    (tmp_path / "gone.png").symlink_to("nowhere.png")
    (tmp_path / "self.png").symlink_to("self.png")
    found = walk(tmp_path)
    assert found.names == ()
    assert [problem.key for problem in found.problems] == ["gone.png", "self.png"]
    assert "broken link to nowhere.png" in found.problems[0].problem


def test_links_to_outer_folders_end_and_are_counted(tmp_path):
    for name in ("x", "y"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").touch()
        for other in ("up", "x", "y"):
            (tmp_path / name / f"to_{other}").symlink_to(tmp_path if other == "up" else tmp_path / other)
    found = walk(tmp_path)
    assert found.names == ("x/file", "y/file")
    assert found.left_out == (("links to a folder that is listed already", 6),)


def test_a_linked_folder_from_elsewhere_is_listed_under_its_link(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "file").touch()
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "link").symlink_to(tmp_path / "elsewhere")
    assert walk(tmp_path / "root").names == ("link/file",)


def test_a_folder_keeps_its_own_name_when_a_link_to_it_sorts_before(tmp_path):
    (tmp_path / "z").mkdir()
    (tmp_path / "z" / "file").touch()
    (tmp_path / "a").symlink_to("z")
    assert walk(tmp_path).names == ("z/file",)


def test_pipes_and_sockets_are_problems_and_nobody_waits_for_them(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe.png")
    monkeypatch.chdir(tmp_path)  # a socket's path must be short
    with socket.socket(socket.AF_UNIX) as end:
        end.bind("socket.png")
        found = walk(tmp_path)
    assert [problem.key for problem in found.problems] == ["pipe.png", "socket.png"]


def test_names_that_are_not_utf8_are_spelled_and_found_again(tmp_path):
    name = os.fsdecode(b"caf\xe9.png")
    (tmp_path / name).write_bytes(b"here")
    (tmp_path / "caf\\xe9.png").write_bytes(b"spelled so")
    (tmp_path / "a.png").touch()
    found = walk(tmp_path)
    assert len(found.names) == 2 and found.path("caf\\xe9.png").read_bytes() in (b"here", b"spelled so")
    (problem,) = found.problems
    assert problem.key == "caf\\xe9.png" and "spelled the same" in problem.problem


def test_a_lone_name_that_is_not_utf8_leads_to_its_file(tmp_path):
    (tmp_path / os.fsdecode(b"caf\xe9.png")).write_bytes(b"here")
    found = walk(tmp_path)
    assert found.problems == () and found.path("caf\\xe9.png").read_bytes() == b"here"
