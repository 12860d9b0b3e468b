"""Files out of Debian packages: fetched by apt-get or found in a folder, opened by dpkg-deb, nothing installed."""

import hashlib
import shutil
import subprocess
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path


def get_package(package: str, packages: str | Path | None, scratch: Path) -> Path:
    """The .deb file of a package: out of the folder `packages`, or fetched into `scratch` if that is None.

    Raises: FileNotFoundError as `find_package` and `download_package`.
    """
    return find_package(package, Path(packages)) if packages else download_package(package, scratch)


def find_package(package: str, folder: Path) -> Path:
    """The newest .deb file of a package in a folder. Raises: FileNotFoundError saying what makes one."""
    found = sorted(folder.glob(f"{package}_*.deb"))
    if not found:
        raise FileNotFoundError(
            f"{folder}: expected {package}_*.deb, found none; `apt-get download {package}` makes it"
        )
    return found[-1]


def download_package(package: str, folder: Path) -> Path:
    """Let apt-get fetch a package into a folder. Raises: FileNotFoundError if there is no apt-get, or it fails."""
    if shutil.which("apt-get") is None:
        raise FileNotFoundError(
            f"apt-get is not here: fetch the Debian package {package} by hand and name its folder with --packages"
        )
    result = subprocess.run(["apt-get", "download", package], cwd=folder, capture_output=True, text=True, check=False)
    if result.returncode:
        raise FileNotFoundError(
            f"apt-get download {package} failed, run `apt-get update` first: {result.stderr.strip()}"
        )
    return find_package(package, folder)


def packed_files(archive: Path, paths: Iterable[str]) -> Iterator[tuple[str, bytes]]:
    """Path and content of each of the files `paths` inside a .deb, in the order they are packed in.

    Raises: FileNotFoundError if there is no dpkg-deb; ValueError for a damaged package, or naming the files that are
    not inside.
    """
    if shutil.which("dpkg-deb") is None:
        raise FileNotFoundError("dpkg-deb is not here: install the package dpkg to open .deb files")
    wanted = dict.fromkeys(paths)
    with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", str(archive)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        try:
            with tarfile.open(fileobj=process.stdout, mode="r|") as members:
                for member in members:
                    path = member.name.removeprefix("./")
                    content = members.extractfile(member) if path in wanted else None
                    if content is not None:
                        del wanted[path]
                        yield path, content.read()
        except tarfile.TarError as error:
            raise ValueError(f"{archive}: expected a whole Debian package: {error}; fetch it again") from error
    if wanted:
        raise ValueError(f"{archive.name}: expected {', '.join(wanted)} inside, found none of them; another version?")


def check_sha256(data: bytes, expected: str, what: str) -> None:
    """Raises: ValueError naming `what` unless the sha256 (hex) of its content is the expected one."""
    found = hashlib.sha256(data).hexdigest()
    if found != expected:
        raise ValueError(f"{what} has sha256 {found}, expected {expected}; another version?")
