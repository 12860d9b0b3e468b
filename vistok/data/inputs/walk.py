"""Every file below a folder, through links too, with a problem for each thing that cannot be listed."""

import os
from collections import deque
from pathlib import Path

from vistok.data.inputs.entry import Entry
from vistok.data.inputs.files import Files, collect, spelled

_TWICE = "links to a folder that is listed already"


def walk(root: Path) -> Files:
    """All regular files below `root`. Each folder is listed once, under its real place if that is below `root`.

    Raises: OSError if `root` itself cannot be listed.
    """
    names: list[str] = []
    problems: list[Entry] = []
    folders, links = deque([""]), deque[str]()
    seen: set[tuple[int, int]] = set()
    twice = 0
    while folders or links:
        folder = folders.popleft() if folders else links.popleft()  # real folders first: a link never hides one
        try:
            state = os.stat(root / folder)
            if (state.st_dev, state.st_ino) in seen:
                twice += 1
                continue
            seen.add((state.st_dev, state.st_ino))
            with os.scandir(root / folder) as scan:
                children = sorted(scan, key=lambda child: child.name)
        except OSError as error:
            if not folder:
                raise
            problems.append(unreadable(folder, error))
            continue
        for child in children:
            _sort_in(child, os.path.join(folder, child.name), names, problems, folders, links)
    return collect(root, names, problems, [(_TWICE, twice)] if twice else [])


def unreadable(name: str, error: OSError) -> Entry:
    """The entry of a folder or file that the system refuses to list."""
    source = spelled(name)
    return Entry(source, source, problem=f"{source}: cannot be listed, {type(error).__name__}: {error.strerror}")


def _sort_in(
    child: os.DirEntry[str],
    name: str,
    names: list[str],
    problems: list[Entry],
    folders: deque[str],
    links: deque[str],
) -> None:
    try:
        if child.is_dir():
            (links if child.is_symlink() else folders).append(name)
        elif child.is_file():
            names.append(name)
        else:
            problems.append(_no_file(child, name))
    except OSError as error:  # a link that leads to itself
        problems.append(unreadable(name, error))


def _no_file(child: os.DirEntry[str], name: str) -> Entry:
    source = spelled(name)
    what = f"a broken link to {spelled(os.readlink(child.path))}" if child.is_symlink() else "a device, pipe or socket"
    return Entry(source, source, problem=f"{source}: expected a file or folder, got {what}")
