"""Fetch the data that vistok trains on."""

from rich.console import Console
from rich.progress import track

from vistok.data.photos import fetch_photos, photo_list


def photos(folder: str, packages: str | None = None) -> None:
    """Fetch the training photographs, check their sha256, and write DATA_LICENSES.md beside them.

    Args:
        folder: where to write; files that are there already and intact are kept.
        packages: folder with the Debian packages, if apt-get should not fetch them.
    """
    total = sum(len(listed) for listed in photo_list().values())
    console = Console(stderr=True)
    for _ in track(fetch_photos(folder, packages), "photographs", total=total, console=console):
        pass
    console.print(f"{total} photographs in {folder}, authors and licences in DATA_LICENSES.md")


COMMAND = {"photos": photos}
