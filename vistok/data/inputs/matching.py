"""The files that a glob pattern names. Unlike the glob module, a folder that cannot be read is not passed over."""

import os
from fnmatch import fnmatchcase
from glob import has_magic
from pathlib import Path, PurePath

from vistok.data.inputs.entry import Entry
from vistok.data.inputs.files import Files, collect
from vistok.data.inputs.walk import unreadable, walk

_Parts = tuple[str, ...]


def matching(pattern: str) -> Files:
    """Files that match, and those below folders that match; `**` is any folders. root: the part without wildcards.

    Names that start with a dot match only a pattern that does. Raises: OSError if the root cannot be listed.
    """
    parts = Path(pattern).parts
    fixed = next(number for number, part in enumerate(parts) if has_magic(part))
    root = Path(*parts[:fixed])
    names: set[str] = set()
    problems: dict[str, Entry] = {}
    _expand(root, "", parts[fixed:], names, problems)
    return collect(root, names, problems.values())


def _expand(root: Path, folder: str, parts: _Parts, names: set[str], problems: dict[str, Entry]) -> None:
    path = root / folder
    if not parts and not path.is_dir():
        names.add(folder)
    elif not parts or parts[0] == "**":
        _expand_below(root, folder, parts, names, problems)
    elif not has_magic(parts[0]):
        if os.path.lexists(path / parts[0]):
            _expand(root, os.path.join(folder, parts[0]), parts[1:], names, problems)
    elif path.is_dir() or not folder:
        try:
            children = sorted(os.listdir(path))
        except OSError as error:
            if not folder:
                raise
            problems[folder] = unreadable(folder, error)
            return
        for child in children:
            if _fits_part(child, parts[0]):
                _expand(root, os.path.join(folder, child), parts[1:], names, problems)


def _expand_below(root: Path, folder: str, parts: _Parts, names: set[str], problems: dict[str, Entry]) -> None:
    try:
        below = walk(root / folder)
    except OSError as error:
        if not folder:
            raise
        problems[folder] = unreadable(folder, error)
        return
    names.update(os.path.join(folder, name) for name in below.names if _fits(PurePath(name).parts, parts))
    for problem in below.problems:
        source = os.path.join(folder, problem.source)
        problems[source] = Entry(source, source, problem=f"{folder}: {problem.problem}" if folder else problem.problem)


def _fits(name: _Parts, pattern: _Parts) -> bool:
    """Whether the file, or a folder that it is below, matches."""
    if not pattern:
        return True
    if not name:
        return pattern == ("**",)
    if pattern[0] == "**":
        return _fits(name, pattern[1:]) or (not name[0].startswith(".") and _fits(name[1:], pattern))
    return _fits_part(name[0], pattern[0]) and _fits(name[1:], pattern[1:])


def _fits_part(name: str, pattern: str) -> bool:
    return fnmatchcase(name, pattern) and (not name.startswith(".") or pattern.startswith("."))
