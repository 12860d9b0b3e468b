"""Archives and tables that are objects behind a URL: one, those below a folder, or those that a pattern names."""

from collections.abc import Callable
from dataclasses import dataclass, field
from glob import has_magic
from typing import Any

from vistok.data.inputs.entry import Entry
from vistok.data.inputs.kept import Kept
from vistok.data.inputs.ranged import RemoteFile
from vistok.data.remote import RemoteFiles
from vistok.data.retry import Backoff

Infos = dict[str, dict[str, Any]]  # what the server says of an object, by its path below the URL


@dataclass(frozen=True)
class ObjectFiles:
    """Objects `names` below `url`, sorted, as `Files` has those of a folder. Pickles as its names."""

    url: str
    names: tuple[str, ...]
    backoff: Backoff = field(default_factory=Backoff)
    kept: Kept = field(default_factory=Kept, repr=False, compare=False)
    problems: tuple[Entry, ...] = ()
    left_out: tuple[tuple[str, int], ...] = ()

    def path(self, source: str) -> RemoteFile:
        """An object by its name."""
        return self.kept.get(source, lambda: RemoteFile(RemoteFiles(self.url, self.backoff), source))


def listed_below(url: str, backoff: Backoff | None = None) -> Infos:
    """All objects below a URL. Raises: FileNotFoundError; OSError if it cannot be listed."""
    return _asked(url, backoff, lambda fs, root: fs.find(root, detail=True))


def matching_objects(pattern: str, backoff: Backoff | None = None) -> ObjectFiles:
    """The objects that a URL with wildcards names, below the part without any.

    Raises: FileNotFoundError if none does; OSError if they cannot be listed.
    """
    scheme, _, path = pattern.partition("://")
    parts = path.split("/")
    fixed = next(number for number, part in enumerate(parts) if has_magic(part))
    root, rest = f"{scheme}://{'/'.join(parts[:fixed])}", "/".join(parts[fixed:])
    infos = _asked(root, backoff, lambda fs, there: fs.glob(f"{there}/{rest}", detail=True))
    names = sorted(name for name, info in infos.items() if info.get("type") == "file")
    if not names:
        raise FileNotFoundError(f"no object matches {pattern}")
    return ObjectFiles(root, tuple(names), backoff or Backoff())


def one_object(url: str, backoff: Backoff | None = None) -> ObjectFiles:
    """The object at a URL. Raises: FileNotFoundError; OSError if its server does not say what it is."""
    folder, _, name = url.rpartition("/")
    found = ObjectFiles(folder, (name,), backoff or Backoff())
    _ = found.path(name).size
    return found


def _asked(url: str, backoff: Backoff | None, list_them: Callable[[Any, str], Infos]) -> Infos:
    files = RemoteFiles(url, backoff)
    fs, root = files.place()

    def ask() -> Infos:
        fs.invalidate_cache()  # others write there
        return list_them(fs, root)

    # A listing spells a path its own way: with or without a slash in front.
    lead = len(root.strip("/"))
    return {name.lstrip("/")[lead:].lstrip("/"): info for name, info in files.backoff.run(ask).items()}
