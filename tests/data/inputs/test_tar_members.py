"""Archives written by hand, with headers that no tar program would write."""

import io
import os
import re
import tarfile

import numpy as np
import pytest

from vistok.data.inputs.files import MAX_BYTES
from vistok.data.inputs.ranged import LocalRanged
from vistok.data.inputs.tar_members import BLOCK, tar_members

CONTENT = b"content of a member"
SIZE = len(CONTENT)


def header(name="bad.jpg", size=SIZE, kind=tarfile.REGTYPE):
    """A header block with a valid checksum, whatever it says."""
    info = tarfile.TarInfo()
    info.type, info.linkname = kind, "target"
    block = bytearray(info.tobuf(tarfile.GNU_FORMAT)[:BLOCK])
    block[:100] = name.encode("latin-1").ljust(100, b"\0")
    block[124:136] = b"%011o\0" % size if 0 <= size < 8**11 else base256(size)
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def base256(number):
    return (b"\x80" if number >= 0 else b"\xff") + number.to_bytes(11, "big", signed=True)


def data(content=CONTENT):
    return content + b"\0" * (-len(content) % BLOCK)


def good(name):
    return header(name) + data()


def extended(kind, content, size=None):
    return header("@ext", len(content) if size is None else size, kind) + data(content)


def pax(**records):
    def record(key, value):
        text = f" {key}={value}\n".encode()
        length = len(text) + len(str(len(text)))
        return str(length + (len(str(length)) > len(str(len(text))))).encode() + text

    return extended(tarfile.XHDTYPE, b"".join(record(*item) for item in records.items()))


def members(tmp_path, *parts):
    path = tmp_path / "archive.tar"
    path.write_bytes(b"".join(parts))
    archive = os.open(path, os.O_RDONLY)
    try:
        return list(tar_members(LocalRanged(archive)))
    finally:
        os.close(archive)


END = b"\0" * 2 * BLOCK
BEYOND = "has .* left"
BAD = {
    "parent": (header("../bad.jpg") + data(), "below the archive"),
    "parent inside": (header("a/../../bad.jpg") + data(), "below the archive"),
    "absolute": (header("/etc/bad.jpg") + data(), "below the archive"),
    "long name that is absolute": (extended(b"L", b"/etc/bad.jpg\0") + good("short"), "below the archive"),
    "pax name that is absolute": (pax(path="/etc/bad.jpg") + good("short"), "below the archive"),
    "symbolic link": (header(kind=tarfile.SYMTYPE, size=0), "a symbolic link"),
    "hard link that claims data": (header(kind=tarfile.LNKTYPE, size=10**9), "a hard link"),
    "character device": (header(kind=tarfile.CHRTYPE, size=0), "a device"),
    "block device": (header(kind=tarfile.BLKTYPE, size=0), "a device"),
    "pipe": (header(kind=tarfile.FIFOTYPE, size=0), "a pipe"),
    "sparse": (header(kind=tarfile.GNUTYPE_SPARSE) + data(), "sparse"),
    "unknown type": (header(kind=b"Z") + data(), "plain file"),
    "no name": (header("") + data(), "expected a name"),
    "size beyond the end": (header(size=8**11 - 1) + data(), BEYOND),
    "size beyond the end, base 256": (header(size=2**80) + data(), BEYOND),
    "negative size": (header(size=-5) + data(), "claims -5"),
    "most negative size": (header(size=-(2**87)) + data(), "claims -"),
    "pax size beyond the end": (pax(size="9" * 20) + good("bad.jpg"), BEYOND),
    "pax size that is no number": (pax(size="-5") + b"", "expected a size"),
    "pax size of many digits": (pax(size="9" * 5000), "expected a size"),
    "pax record of length zero": (extended(tarfile.XHDTYPE, b"0 path=x\n"), "pax records"),
    "pax record without length": (extended(tarfile.XHDTYPE, b"path=x\n"), "pax records"),
    "pax record that is too long": (extended(tarfile.XHDTYPE, b"999 path=x\n"), "pax records"),
    "pax header of gigabytes": (extended(tarfile.XHDTYPE, b"", 8**11 - 1), BEYOND),
    "long name of gigabytes": (extended(b"L", b"", 8**11 - 1), BEYOND),
    "long name of negative size": (extended(b"L", b"", -1), "claims -1"),
    "pax header above the limit": (extended(tarfile.XHDTYPE, b"x" * (1 << 21)), "at most"),
    "long name above the limit": (extended(b"L", b"x" * (1 << 21)), "at most"),
    "pax sparse": (pax(**{"GNU.sparse.major": "1"}) + good("bad.jpg"), "sparse"),
    "wrong checksum": (b"x" + header()[1:] + data(), "no tar member"),
    "garbage": (np.random.default_rng(0).bytes(3 * BLOCK), "no tar member"),
    "garbage with the magic": (b"ustar" * 400 + b"\0" * 48, "no tar member"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_member_is_a_problem_and_takes_no_neighbour_along(tmp_path, name):
    bad, why = BAD[name]
    found = members(tmp_path, good("a"), bad, good("b"), good("c"), END)
    assert [member.name for member in found if not member.problem] == ["a", "b", "c"]
    (problem,) = [member for member in found if member.problem]
    assert re.search(why, problem.problem)


@pytest.mark.parametrize("name", BAD)
def test_bad_members_in_a_row_and_alone_end_too(tmp_path, name):
    bad, _ = BAD[name]
    assert members(tmp_path, bad)[0].problem
    found = members(tmp_path, bad, bad, bad, good("a"))
    assert [member.name for member in found if not member.problem] == ["a"]


def test_what_tarfile_writes_is_listed_as_tarfile_lists_it(tmp_path, write_tar):
    names = ["a.jpg", "./b/c.txt", "x" * 99, "d/" * 60 + "long.jpg", "n" * 300, "caf\xe9.png", "empty"]
    for kind in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        kept = [name for name in names if kind != tarfile.USTAR_FORMAT or len(name) < 200]
        path = write_tar(
            tmp_path / "a.tar", [(name, b"" if name == "empty" else name.encode()) for name in kept], format=kind
        )
        with tarfile.open(path) as archive:
            expected = [(info.name.removeprefix("./"), info.offset_data, info.size, "") for info in archive]
        found = members(tmp_path, path.read_bytes())
        assert [(member.name, *member[2:]) for member in found] == expected


def test_folders_and_global_headers_are_no_members(tmp_path):
    folder = header("folder", 0, tarfile.DIRTYPE)
    everywhere = extended(tarfile.XGLTYPE, b"16 comment=abcd\n")
    assert [member[::4] for member in members(tmp_path, everywhere, folder, good("a"))] == [("a", "")]


def test_zeros_at_the_end_and_between_joined_archives_are_no_problem(tmp_path):
    for zeros in (b"", b"\0" * 100, END, b"\0" * 3_000_000):
        found = members(tmp_path, good("a"), END, good("b"), zeros)
        assert [(member.name, member.problem) for member in found] == [("a", ""), ("b", "")]
    assert members(tmp_path, END) == [] == members(tmp_path)


def test_a_last_member_that_is_cut_off_is_a_problem_but_not_for_its_padding(tmp_path):
    whole = good("a") + good("b")
    length = len(good("a")) + BLOCK + len(CONTENT)
    assert [member.problem for member in members(tmp_path, whole[:length])] == ["", ""]
    first, second = members(tmp_path, whole[: length - 1])
    assert first.problem == "" and "claims 19 bytes, the archive has 18 left" in second.problem
    first, second = members(tmp_path, whole[: len(good("a")) + 100])
    assert first.problem == "" and "100 bytes from byte 1024 on" in second.problem


def test_a_name_without_its_member_is_a_problem(tmp_path):
    (found,) = members(tmp_path, extended(b"L", b"n" * 200), END)
    assert found.name == "n" * 200 and "archive ends" in found.problem


def test_a_member_of_the_limit_is_read_and_one_above_is_passed_over(tmp_path):
    path = tmp_path / "big.tar"
    with open(path, "wb") as file:
        for name, size in (("a", MAX_BYTES), ("b", MAX_BYTES + 1), ("c", 1)):
            file.write(header(name, size))
            file.seek(-(-size // BLOCK) * BLOCK, io.SEEK_CUR)
        file.truncate(file.tell())
    with open(path, "rb") as file:
        problems = {member.name: member.problem for member in tar_members(LocalRanged(file.fileno()))}
    assert problems["a"] == problems["c"] == "" and f"at most {MAX_BYTES}" in problems["b"]


def test_a_header_across_the_pieces_that_a_hole_is_searched_in_is_found(tmp_path):
    for blocks in (2047, 2048, 2049, 4095, 4096):
        found = members(tmp_path, b"x" * BLOCK * blocks, good("a"))
        assert [member.name for member in found] == ["", "a"] and found[0].size == BLOCK * blocks


def test_names_that_are_not_utf8_are_spelled(tmp_path):
    (found,) = members(tmp_path, good("caf\xe9.jpg"))
    assert found.name == "caf\\xe9.jpg"
