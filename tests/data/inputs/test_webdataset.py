import os
import tarfile

import numpy as np
import pytest
from webdataset import TarWriter
from webdataset.tariterators import group_by_keys, tar_file_expander

from vistok.data.inputs.entry import Record
from vistok.data.inputs.open import open_input


def read_all(source):
    opened = open_input(source)
    return {entry.key: opened.read(entry) for entry in opened.entries() if not entry.problem}


def problems(source):
    return {entry.key: entry.problem for entry in open_input(source).entries() if entry.problem}


@pytest.fixture
def archive(tmp_path, write_tar, picture):
    """Three samples with all that a sample may have."""
    members = []
    for number in range(3):
        members += [(f"dir/{number}.png", picture(number)), (f"dir/{number}.txt", f"caption {number}\n".encode())]
        members += [(f"dir/{number}.json", b'{"text": "in json"}'), (f"dir/{number}.cls", f"{number}\n".encode())]
    return write_tar(tmp_path / "train-0.tar", members)


def test_a_sample_has_its_picture_caption_and_fields(archive, picture):
    opened = open_input(archive)
    entries = opened.entries()
    assert [entry.key for entry in entries] == [f"train-0.tar/dir/{number}" for number in range(3)]
    assert opened.fields.names == ["cls", "json"] and opened.left_out == {}
    for number, entry in enumerate(entries):
        expected = Record(picture(number), f"caption {number}", {"json": '{"text": "in json"}', "cls": str(number)})
        assert opened.read(entry) == expected
        content = archive.read_bytes()[entry.offset : entry.offset + entry.size]
        assert content == picture(number) and entry.source == "train-0.tar"


def test_samples_are_those_that_the_webdataset_library_finds(archive):
    with open(archive, "rb") as file:
        samples = list(group_by_keys(tar_file_expander([{"url": "train-0.tar", "stream": file}])))
    theirs = {
        f"{sample['__url__']}/{sample['__key__']}": (sample["png"], sample["txt"].strip(), sample["cls"].strip())
        for sample in samples
    }
    ours = read_all(archive)
    assert len(ours) == 3 and theirs == {
        key: (record.content, record.caption.encode(), record.fields["cls"].encode()) for key, record in ours.items()
    }


def test_what_the_webdataset_writer_writes_is_read(tmp_path, picture):
    with TarWriter(str(tmp_path / "a.tar")) as writer:
        for number in range(3):
            writer.write(
                {"__key__": f"{number:03d}", "jpg": picture(number, "JPEG"), "json": {"caption": f"c{number}"}}
            )
    records = read_all(tmp_path / "a.tar")
    assert {key: record.caption for key, record in records.items()} == {f"a.tar/00{n}": f"c{n}" for n in range(3)}
    assert records["a.tar/001"].content == picture(1, "JPEG")


def test_many_archives_are_read_in_order_of_their_names(tmp_path, write_tar, picture):
    for name in ("b.tar", "sub/a.tar", "a.tar"):
        write_tar(tmp_path / "in" / name, [("x.png", picture(0)), ("y.png", picture(1))])
    entries = open_input(tmp_path / "in").entries()
    expected = [f"{name}/{key}" for name in ("a.tar", "b.tar", "sub/a.tar") for key in "xy"]
    assert [entry.key for entry in entries] == expected
    assert [entry.key for entry in open_input(f"{tmp_path}/in/*.tar").entries()] == expected[:4]


def test_members_of_a_sample_need_not_be_adjacent(tmp_path, write_tar, picture):
    members = [("a.txt", b"of a"), ("b.txt", b"of b"), ("b.png", picture(1)), ("a.png", picture(0))]
    records = read_all(write_tar(tmp_path / "x.tar", members))
    assert {key: (record.content, record.caption) for key, record in records.items()} == {
        "x.tar/a": (picture(0), "of a"),
        "x.tar/b": (picture(1), "of b"),
    }


def test_a_key_that_comes_again_is_another_sample(tmp_path, write_tar, picture):
    members = [("a.png", picture(0)), ("a.txt", b"0"), ("a.png", picture(1)), ("a.txt", b"1")]
    members += [("a#2.png", picture(2)), ("./a.png", picture(3))]
    records = read_all(write_tar(tmp_path / "x.tar", members))
    expected = {"x.tar/a": 0, "x.tar/a#2": 1, "x.tar/a#2#2": 2, "x.tar/a#3": 3}
    assert {key: record.content for key, record in records.items()} == {
        key: picture(number) for key, number in expected.items()
    }
    assert [records[f"x.tar/{key}"].caption for key in ("a", "a#2", "a#3")] == ["0", "1", None]


def test_the_key_ends_at_the_first_dot_of_the_name_and_not_of_the_folder(tmp_path, write_tar, picture):
    members = [("v1.0/a.b/photo.2019.PNG", picture(0)), ("v1.0/a.b/photo.txt", b"a caption")]
    records = read_all(write_tar(tmp_path / "x.tar", members))
    assert records == {"x.tar/v1.0/a.b/photo": Record(picture(0), "a caption")}


def test_the_plain_picture_is_taken_before_others_and_the_rest_is_counted(tmp_path, write_tar, picture):
    members = [("a.seg.jpg", b"no"), ("a.webp", b"no"), ("a.png", picture(0)), ("a.npy", b"x"), ("README", b"x")]
    members += [("only.txt", b"no picture"), ("only.json", b"{}"), (".hidden.png", b"x")]
    source = write_tar(tmp_path / "in" / "x.tar", members)
    (source.parent / "notes.md").touch()
    assert read_all(source.parent)["x.tar/a"].content == picture(0)
    assert open_input(source.parent).left_out == {
        ".hidden.png": 1,
        ".md": 1,
        ".npy": 1,
        ".seg.jpg": 1,
        ".webp": 1,
        "no suffix": 1,
        "samples without a picture": 1,
    }


@pytest.mark.parametrize(("name", "content"), [("a.txt", b"\xff"), ("a.json", b"{"), ("a.json", b"[" * 10**5)])
def test_an_unreadable_caption_is_an_error_of_that_sample_alone(tmp_path, write_tar, picture, name, content):
    source = write_tar(tmp_path / "x.tar", [("a.png", picture(0)), (name, content), ("b.png", picture(1))])
    opened = open_input(source)
    first, second = opened.entries()
    with pytest.raises(ValueError, match=f"x.tar: {name}"):
        opened.read(first)
    assert opened.read(second).content == picture(1)


def test_bad_members_are_problems_beside_the_samples(tmp_path, picture):
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        for name, kind in (("../out.png", b"0"), ("/abs.png", b"0"), ("link.png", b"2"), ("good.png", b"0")):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            archive.addfile(info)
    found = problems(tmp_path / "x.tar")
    assert list(found) == ["x.tar/../out.png", "x.tar/abs.png", "x.tar/link.png"]
    assert all(text.startswith("x.tar: ") and "at byte" in text for text in found.values())
    assert list(read_all(tmp_path / "x.tar")) == ["x.tar/good"]
    opened = open_input(tmp_path / "x.tar")
    with pytest.raises(ValueError, match="below the archive"):
        opened.read(opened.entries()[0])


def test_a_damaged_header_takes_only_its_member_along(archive, picture):
    content = bytearray(archive.read_bytes())
    second = open_input(archive).entries()[1]
    content[second.offset - 512] ^= 0xFF
    archive.write_bytes(content)
    records = read_all(archive)
    assert list(records) == ["train-0.tar/dir/0", "train-0.tar/dir/2"]
    assert records["train-0.tar/dir/2"].content == picture(2)
    assert list(problems(archive)) == [f"train-0.tar/@{second.offset - 512}"]
    assert open_input(archive).left_out == {"samples without a picture": 1}


def test_a_truncated_archive_loses_its_last_member_and_says_so(tmp_path, write_tar, picture):
    source = write_tar(tmp_path / "x.tar", [("a.png", picture(0)), ("b.png", picture(1))])
    last = open_input(source).entries()[1]
    os.truncate(source, last.offset + last.size - 1)
    assert list(read_all(source)) == ["x.tar/a"]
    assert "x.tar/b.png" in problems(source)


@pytest.mark.parametrize("content", [b"", b"no tar at all", b"\x1f\x8b" + b"x" * 2000])
def test_a_file_that_is_no_archive_is_a_problem_and_the_others_are_read(tmp_path, write_tar, picture, content):
    write_tar(tmp_path / "in" / "a.tar", [("a.png", picture(0))])
    (tmp_path / "in" / "b.tar").write_bytes(content)
    assert list(read_all(tmp_path / "in")) == ["a.tar/a"] and list(problems(tmp_path / "in")) == ["b.tar/@0"]


def test_an_archive_that_is_gone_is_a_problem_and_a_compressed_one_too(tmp_path, write_tar, picture):
    write_tar(tmp_path / "in" / "a.tar", [("a.png", picture(0))])
    (tmp_path / "in" / "b.tar").symlink_to("nowhere")
    (tmp_path / "in" / "c.tar.gz").touch()
    found = problems(f"{tmp_path}/in/*")
    assert list(found) == ["b.tar", "c.tar.gz"] and "decompress it" in found["c.tar.gz"]


def test_an_archive_that_has_changed_is_not_read(archive, write_tar, picture):
    entry = open_input(archive).entries()[0]
    opened = open_input(archive)
    opened.read(entry)
    os.utime(archive, ns=(1, 1))
    with pytest.raises(ValueError, match="has changed since"):
        opened.read(entry)
    archive.unlink()
    with pytest.raises(FileNotFoundError, match="train-0.tar"):
        opened.read(entry)


def damaged(content, rng):
    """The archive with headers changed here and there, checksums put right half of the time."""
    content = bytearray(content)
    blocks = len(content) // 512
    for _ in range(rng.integers(1, 6)):
        start = 512 * int(rng.integers(blocks))
        place = int(rng.choice([0, 100, 124, 136, 148, 156, 157, 257, 345, 482]))
        noise = rng.bytes(int(rng.integers(1, 13))) if rng.random() < 0.5 else bytes(rng.choice([b"7", b"\xff", b"\0"]))
        content[start + place : start + place + len(noise)] = noise
        if rng.random() < 0.7:
            content[start + 156 : start + 157] = (
                rng.choice(list(b"0123456789LKxgXSVMD\0"), 1).astype(np.uint8).tobytes()
            )
        if rng.random() < 0.7:
            content[start + 148 : start + 156] = b" " * 8
            content[start + 148 : start + 156] = b"%06o\0 " % sum(content[start : start + 512])
    return bytes(content[: int(rng.integers(len(content)))] if rng.random() < 0.2 else content)


def read_damaged_archives(tmp_path, write_tar, picture, count):
    members = [(f"{'long' * 40 * (number % 2)}{number}.png", picture(number)) for number in range(6)]
    members += [(f"{number}.json", b'{"caption": "x"}') for number in range(6)]
    rng = np.random.default_rng(0)
    contents = [
        write_tar(tmp_path / "whole.tar", members, format=kind).read_bytes()
        for kind in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT)
    ]
    read = failed = 0
    for number in range(count):
        (tmp_path / "fuzz.tar").write_bytes(damaged(contents[number % 2], rng))
        opened = open_input(tmp_path / "fuzz.tar")
        entries = opened.entries()
        assert entries == opened.entries() and len({entry.key for entry in entries}) == len(entries)
        for entry in entries:
            try:
                assert isinstance(opened.read(entry), Record)
                read += 1
            except (ValueError, OSError):
                failed += 1
    assert read > 2 * count and failed > count / 2


def test_damaged_headers_give_records_or_named_errors(tmp_path, write_tar, picture):
    read_damaged_archives(tmp_path, write_tar, picture, 300)


@pytest.mark.slow
def test_many_damaged_headers_give_records_or_named_errors(tmp_path, write_tar, picture):
    read_damaged_archives(tmp_path, write_tar, picture, 3000)
