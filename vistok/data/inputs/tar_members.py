"""The members of a tar file, read from their headers; nothing is unpacked and no header is believed.

A damaged stretch is passed over up to the next valid header and reported as one member with a problem.
"""

import tarfile
from collections.abc import Iterator
from typing import NamedTuple

from vistok.data.inputs.files import MAX_BYTES
from vistok.data.inputs.ranged import Ranged, read_at

BLOCK = 512
_MAX_EXTENDED = 1 << 20  # bytes of a long name or a pax header
_CHUNK = 1 << 20
_MAGIC, _MAGIC_AT = b"ustar", 257
_LONG = {tarfile.GNUTYPE_LONGNAME: "path", tarfile.GNUTYPE_LONGLINK: "linkpath"}
_EXTENDED = (*_LONG, tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE)
_REGULAR = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)
_WITHOUT_DATA = {
    tarfile.LNKTYPE: "a hard link",
    tarfile.SYMTYPE: "a symbolic link",
    tarfile.CHRTYPE: "a device",
    tarfile.BLKTYPE: "a device",
    tarfile.FIFOTYPE: "a pipe",
    tarfile.DIRTYPE: "a folder",
}


class Member(NamedTuple):
    """A file in the archive. header, offset: where its header and its data start; problem: "" = it can be read."""

    name: str
    header: int
    offset: int
    size: int
    problem: str = ""


def tar_members(archive: Ranged) -> Iterator[Member]:
    """Files of the archive in order, without folders."""
    end = archive.size
    at, extended = 0, dict[str, str]()
    while (at := _skip_zeros(archive, at, end)) < end:
        header = _header(archive.read(BLOCK, at))
        data = at + BLOCK
        if header is None:
            after = _next_header(archive, data, end)
            problem = f"{after - at} bytes from byte {at} on are no tar member (damaged or compressed)"
            yield Member("", at, data, after - at, problem)
            extended = {}
        elif not 0 <= (size := _size(header, extended)) <= end - data:
            problem = f"claims {size} bytes, the archive has {end - data} left"
            yield Member(_name(header, extended), at, data, size, problem)
            after = _next_header(archive, data, end)
            extended = {}
        else:
            after = min(end, data + -(-size // BLOCK) * BLOCK)
            if header.type in _EXTENDED:
                try:
                    extended |= _extended(archive, header.type, data, size)
                except ValueError as error:
                    yield Member(_tidy(header.name), at, data, size, str(error))
            elif header.type != tarfile.XGLTYPE:
                if header.type != tarfile.DIRTYPE:
                    yield Member(_name(header, extended), at, data, size, _problem(header, extended, size))
                extended = {}
        at = after
    if extended:
        yield Member(_tidy(extended.get("path", "")), end, end, 0, "the archive ends where this member should start")


def _size(header: tarfile.TarInfo, extended: dict[str, str]) -> int:
    if header.type in _WITHOUT_DATA:
        return 0
    return header.size if header.type in _EXTENDED else int(extended.get("size", header.size))


def _name(header: tarfile.TarInfo, extended: dict[str, str]) -> str:
    return _tidy(extended.get("path", header.name))


def _problem(header: tarfile.TarInfo, extended: dict[str, str], size: int) -> str:
    name = extended.get("path", header.name)
    if header.type in _WITHOUT_DATA:
        return f"expected a file, got {_WITHOUT_DATA[header.type]}"
    if header.type not in _REGULAR or any(key.startswith("GNU.sparse") for key in extended):
        return f"expected a plain file, got one of type {header.type!r} (sparse, or of several volumes)"
    if name.startswith("/") or ".." in name.split("/"):
        return f"expected a name below the archive, without '..' and no '/' in front, got {name[:200]!r}"
    if not _tidy(name) or "\0" in name:
        return f"expected a name, got {name[:200]!r}"
    return f"expected at most {MAX_BYTES} bytes, got {size}" if size > MAX_BYTES else ""


def _tidy(name: str) -> str:
    return "/".join(part for part in name.split("/") if part not in ("", "."))


def _header(block: bytes) -> tarfile.TarInfo | None:
    try:
        return tarfile.TarInfo.frombuf(block, "utf-8", "backslashreplace")
    except (tarfile.HeaderError, ValueError):
        return None


def _extended(archive: Ranged, kind: bytes, data: int, size: int) -> dict[str, str]:
    if size > _MAX_EXTENDED:
        raise ValueError(f"expected an extended header of at most {_MAX_EXTENDED} bytes, got {size}")
    content = read_at(archive, size, data)
    if kind in _LONG:
        return {_LONG[kind]: content.split(b"\0")[0].decode("utf-8", "backslashreplace")}
    return _pax_records(content)


def _pax_records(content: bytes) -> dict[str, str]:
    """Records "<length> <key>=<value>\\n", the length that of the whole record.

    Source: POSIX.1-2017, pax, "pax Extended Header".
    """
    records: dict[str, str] = {}
    at = 0
    while at < len(content) and content[at] != 0:
        digits = content[at : at + 8].split(b" ")[0]
        length = int(digits) if digits.isdigit() else 0
        key, equals, value = content[at + len(digits) + 1 : at + length].partition(b"=")
        if not (equals and value.endswith(b"\n") and at + length <= len(content)):
            raise ValueError(f"expected pax records, got {content[at : at + 40]!r}")
        records[key.decode("utf-8", "backslashreplace")] = value[:-1].decode("utf-8", "backslashreplace")
        at += length
    if not records.get("size", "0").isdecimal() or len(records.get("size", "")) > 20:
        raise ValueError(f"expected a size in the pax header, got {records['size'][:40]!r}")
    return records


def _skip_zeros(archive: Ranged, at: int, end: int) -> int:
    """The first block from `at` on that is not all zero."""
    while at < end:
        chunk = archive.read(BLOCK, at) or b"\0"
        if chunk.count(0) < len(chunk):
            return at
        chunk = archive.read(_CHUNK, at)
        zeros = len(chunk) - len(chunk.lstrip(b"\0"))
        at += zeros if zeros == len(chunk) else zeros // BLOCK * BLOCK
        if not chunk:
            return end
    return end


def _next_header(archive: Ranged, at: int, end: int) -> int:
    """Where the next valid header with the magic of POSIX or GNU starts, `end` if there is none."""
    while at < end:
        chunk = archive.read(_CHUNK, at)
        if len(chunk) < BLOCK:
            return end
        found = chunk.find(_MAGIC)
        while found >= 0:
            start = found - _MAGIC_AT
            if start >= 0 and start % BLOCK == 0 and _header(chunk[start : start + BLOCK]):
                return at + start
            found = chunk.find(_MAGIC, found + 1)
        at += len(chunk) // BLOCK * BLOCK
    return end
