import json
import os

import pytest

from vistok.data.inputs.files import MAX_BYTES
from vistok.data.inputs.open import open_input


def read_all(source):
    opened = open_input(source)
    return {entry.key: opened.read(entry) for entry in opened.entries() if not entry.problem}


def versions(folder):
    return {entry.key: entry.version for entry in open_input(folder).entries()}


def problems(source):
    return {entry.key: entry.problem for entry in open_input(source).entries() if entry.problem}


def test_pictures_below_a_folder_are_listed_by_path_with_their_bytes(pictures):
    opened = open_input(pictures)
    entries = opened.entries()
    assert [entry.key for entry in entries] == ["b.png", "c.jpeg", "sub/a.JPG"]
    assert all(entry.source == entry.key and entry.offset == 0 for entry in entries)
    for entry in entries:
        content = (pictures / entry.key).read_bytes()
        assert opened.read(entry).content == content and entry.size == len(content)
    assert opened.read(entries[0]).caption is None and opened.fields.names == []


def test_one_picture_is_an_input_of_one(pictures):
    opened = open_input(pictures / "sub" / "a.JPG")
    assert [entry.key for entry in opened.entries()] == ["a.JPG"]
    assert opened.left_out == {}


def test_pictures_of_a_pattern_are_named_below_its_folder(pictures):
    assert [entry.key for entry in open_input(f"{pictures}/**/*.[jJ]*").entries()] == ["c.jpeg", "sub/a.JPG"]


def test_a_text_file_beside_a_picture_is_its_caption(pictures):
    (pictures / "b.txt").write_text("\ufeff a cat \n", encoding="utf-8")
    (pictures / "sub" / "a.txt").write_text("")
    records = read_all(pictures)
    assert [records[key].caption for key in ("b.png", "sub/a.JPG", "c.jpeg")] == ["a cat", "", None]
    assert open_input(pictures).left_out == {}


def test_a_json_file_is_carried_and_its_caption_counts_if_there_is_no_text(pictures):
    (pictures / "b.json").write_text('{"caption": "from json", "score": 0.50}')
    (pictures / "c.json").write_text('{"text": "other name"}')
    (pictures / "c.txt").write_text("from text")
    records = read_all(pictures)
    assert records["b.png"].caption == "from json" and records["c.jpeg"].caption == "from text"
    assert records["b.png"].fields == {"json": '{"caption": "from json", "score": 0.50}'}
    assert records["sub/a.JPG"].fields == {} and open_input(pictures).fields.names == ["json"]


def test_metadata_jsonl_gives_rows_to_the_pictures_it_names(pictures):
    rows = [{"file_name": "b.png", "text": "a cat"}, {"file_name": "./sub/a.JPG", "caption": "a dog", "n": [1]}]
    (pictures / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    records = read_all(pictures)
    assert {key: record.caption for key, record in records.items()} == {
        "b.png": "a cat",
        "c.jpeg": None,
        "sub/a.JPG": "a dog",
    }
    assert json.loads(records["sub/a.JPG"].fields["json"]) == rows[1]
    assert problems(pictures) == {} and open_input(pictures).left_out == {}


def test_metadata_csv_gives_rows_and_the_nearest_table_counts(pictures):
    (pictures / "metadata.csv").write_text('file_name,text\nsub/a.JPG,outer\nb.png,"two\nlines"\nabsent.png,x\n')
    (pictures / "sub" / "metadata.csv").write_text("file_name,text\na.JPG,inner\n")
    records = read_all(pictures)
    assert records["b.png"].caption == "two\nlines" and records["sub/a.JPG"].caption == "inner"
    assert open_input(pictures).left_out == {"rows of metadata.csv without a picture": 2}


def test_a_json_file_is_joined_with_the_row_and_wins(pictures):
    (pictures / "metadata.jsonl").write_text('{"file_name": "b.png", "text": "row", "a": 1}\n')
    (pictures / "b.json").write_text('{"a": 2, "b": 3}')
    record = read_all(pictures)["b.png"]
    assert json.loads(record.fields["json"]) == {"file_name": "b.png", "text": "row", "a": 2, "b": 3}
    assert record.caption == "row"


def test_a_bad_row_of_metadata_is_a_problem_and_the_others_count(pictures):
    rows = ['{"file_name": "b.png", "text": "good"}', "{no json", '{"text": "no name"}', "[" * 10**5]
    rows += ['{"file_name": "b.png", "text": "again"}', '{"file_name": "c.jpeg", "text": "good too"}']
    (pictures / "metadata.jsonl").write_text("\n".join(rows))
    records = read_all(pictures)
    assert records["b.png"].caption == "good" and records["c.jpeg"].caption == "good too"
    assert {key: text[:22] for key, text in problems(pictures).items()} == {
        f"metadata.jsonl:{line}": f"metadata.jsonl line {line}:" for line in (2, 3, 4, 5)
    }


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("metadata.csv", b"name,text\nb.png,x\n"),
        ("metadata.csv", b"file_name,text\nb.png\n"),
        ("metadata.csv", b'file_name,text\nb.png,"x"y\n'),
        ("metadata.csv", b"file_name,text\nb.png," + b"x" * 200_000),
        ("metadata.csv", b""),
        ("metadata.jsonl", b'{"file_name": "b.png", "text": "\xff"}'),
    ],
)
def test_a_table_that_makes_no_sense_is_a_problem_and_the_pictures_are_read(pictures, name, content):
    (pictures / name).write_bytes(content)
    assert len(read_all(pictures)) == 3
    (problem,) = problems(pictures).values()
    assert problem.startswith(name)


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("b.txt", b"caf\xe9", "UTF-8"),
        ("b.json", b"{", "JSON"),
        ("b.json", b"[" * 10**5, "JSON"),
        ("b.txt", b"x" * (17 << 20), "at most"),
    ],
)
def test_an_unreadable_file_beside_a_picture_is_an_error_of_that_picture_alone(pictures, name, content, why):
    (pictures / name).write_bytes(content)
    opened = open_input(pictures)
    first, *others = opened.entries()
    with pytest.raises(ValueError, match=f"b.*{why}"):
        opened.read(first)
    assert len([opened.read(entry) for entry in others]) == 2


def test_a_caption_that_utf8_cannot_hold_is_spelled_out(pictures):
    (pictures / "b.json").write_text('{"caption": "\\ud800 half"}')
    assert read_all(pictures)["b.png"].caption == "\\ud800 half"


def test_the_version_changes_with_the_picture_and_with_each_file_beside_it(pictures):
    seen = [versions(pictures)]
    for name in ("b.txt", "b.json", "metadata.jsonl"):
        (pictures / name).write_text('{"file_name": "b.png"}')
        seen.append(versions(pictures))
        os.utime(pictures / name, ns=(1, 1))
        seen.append(versions(pictures))
    os.utime(pictures / "b.png", ns=(5, 5))
    seen.append(versions(pictures))
    assert len({found["b.png"] for found in seen}) == len(seen)
    assert len({found["c.jpeg"] for found in seen}) == 3  # metadata.jsonl is of the whole folder
    assert versions(pictures) == seen[-1] and max(seen[-1].values()) < 2**63


@pytest.mark.parametrize("name", ["b.png", "b.txt", "b.json", "metadata.csv"])
def test_what_has_changed_since_the_listing_is_not_read(pictures, name):
    (pictures / "b.txt").write_text("before")
    opened = open_input(pictures)
    entry = opened.entries()[0]
    assert opened.read(entry).caption == "before"
    (pictures / name).write_text("file_name,text\n")
    fresh = open_input(pictures)
    with pytest.raises(ValueError, match="has changed since"):
        fresh.read(entry)


def test_a_picture_that_is_gone_is_an_error_that_names_it(pictures):
    opened = open_input(pictures)
    entry = opened.entries()[0]
    (pictures / "b.png").unlink()
    with pytest.raises(FileNotFoundError, match="b.png"):
        opened.read(entry)


def test_broken_links_and_huge_files_are_problems_beside_the_pictures(pictures):
    (pictures / "gone.png").symlink_to("nowhere")
    with open(pictures / "huge.png", "wb") as file:
        file.truncate(MAX_BYTES + 1)
    found = problems(pictures)
    assert "broken link" in found["gone.png"] and "at most" in found["huge.png"] and len(found) == 2
    opened = open_input(pictures)
    bad = [entry for entry in opened.entries() if entry.problem]
    for entry in bad:
        with pytest.raises(ValueError, match=entry.key):
            opened.read(entry)
    assert len(read_all(pictures)) == 3


def test_a_broken_link_among_the_matches_of_a_pattern_is_a_problem(pictures):
    (pictures / "gone.png").symlink_to("nowhere")
    assert list(problems(f"{pictures}/*.png")) == ["gone.png"]


def test_a_pipe_beside_a_picture_is_not_waited_for(pictures):
    os.mkfifo(pictures / "b.txt")
    assert read_all(pictures)["b.png"].caption is None
    assert list(problems(pictures)) == ["b.txt"]


def test_other_files_are_counted_by_suffix(pictures):
    for name in ("README", "a.mp4", "sub/b.MP4", "orphan.txt", "sub/x.tar.gz.part"):
        (pictures / name).touch()
    assert open_input(pictures).left_out == {".mp4": 2, ".part": 1, ".txt": 1, "no suffix": 1}


def test_names_that_are_not_utf8_are_spelled_in_the_key_and_read(pictures, picture):
    (pictures / os.fsdecode(b"caf\xe9.png")).write_bytes(picture(4))
    assert read_all(pictures)["caf\\xe9.png"].content == picture(4)
