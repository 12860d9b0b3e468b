"""The training photographs: fetched as Debian packages, checked, and written with author and licence of each."""

import hashlib
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from vistok.config import read_yaml
from vistok.data.debian_packages import check_sha256, get_package, packed_files
from vistok.data.shard import write_atomic


@dataclass(frozen=True)
class Photo:
    """One picture: path inside its package, sha256 (hex) of the file, author, licence (SPDX)."""

    name: str
    path: str
    sha256: str
    author: str
    licence: str

    @property
    def file_name(self) -> str:
        """Name of the file that is written."""
        return self.name + Path(self.path).suffix


def photo_list() -> dict[str, list[Photo]]:
    """The photographs of configs/data/photos.yaml by package."""
    packages = read_yaml("data", "photos")
    return {package: [Photo(**photo) for photo in entry["photos"]] for package, entry in packages.items()}


def fetch_photos(
    folder: str | Path, packages: str | Path | None = None, photos: Mapping[str, list[Photo]] | None = None
) -> Iterator[Photo]:
    """Write every photograph that `folder` lacks, yield each once it is there, then write DATA_LICENSES.md.

    packages: folder with the .deb files; default: `apt-get download` fetches them. Raises: FileNotFoundError if a
    package or a tool is missing; ValueError if a file is not the one that was listed.
    """
    out = Path(folder)
    out.mkdir(parents=True, exist_ok=True)
    listed = photo_list() if photos is None else photos
    for package, wanted in listed.items():
        missing = [photo for photo in wanted if not _matches(out / photo.file_name, photo)]
        if missing:
            with tempfile.TemporaryDirectory() as scratch:
                archive = get_package(package, packages, Path(scratch))
                _unpack(archive, missing, out)
        yield from wanted
    write_atomic(out / "DATA_LICENSES.md", licence_table(listed).encode())


def licence_table(listed: Mapping[str, list[Photo]]) -> str:
    """A Markdown table of file, author, licence and package."""
    rows = [
        f"| {photo.file_name} | {photo.author} | {photo.licence} | {package} |"
        for package, photos in listed.items()
        for photo in photos
    ]
    head = "# Photographs in this folder\n\n| file | author | licence | Debian package |\n|---|---|---|---|\n"
    return head + "\n".join(rows) + "\n"


def _unpack(archive: Path, wanted: list[Photo], out: Path) -> None:
    by_path = {photo.path: photo for photo in wanted}
    for path, content in packed_files(archive, by_path):
        check_sha256(content, by_path[path].sha256, f"{archive.name}: {path}")
        write_atomic(out / by_path[path].file_name, content)


def _matches(path: Path, photo: Photo) -> bool:
    return path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == photo.sha256
