import pickle

import fsspec
import pytest

from vistok.data.inputs.entry import Entry
from vistok.data.inputs.open import open_input


@pytest.fixture
def fs(picture, request):
    """Three pictures in a bucket, one with a caption and one with an annotation; and other objects."""
    fs = fsspec.filesystem("memory")
    request.addfinalizer(lambda: fs.rm("/photos", recursive=True))
    for number, name in enumerate(("b.png", "sub/a.PNG", "sub/c.jpeg")):
        fs.pipe_file(f"/photos/{name}", picture(number, "JPEG" if name.endswith("jpeg") else "PNG"))
    fs.pipe_file("/photos/sub/a.txt", "grün".encode())
    fs.pipe_file("/photos/sub/c.json", b'{"text": "blue", "n": 1}')
    fs.pipe_file("/photos/sub/other.txt", b"belongs to nothing")
    fs.pipe_file("/photos/notes.md", b"x")
    return fs


def test_pictures_captions_and_annotations_below_a_url(fs, picture):
    opened = open_input("memory://photos/")
    entries = opened.entries()
    assert [entry.key for entry in entries] == ["b.png", "sub/a.PNG", "sub/c.jpeg"]
    assert opened.fields.names == ["json"] and opened.left_out == {".md": 1, ".txt": 1}
    reader = pickle.loads(pickle.dumps(opened))
    records = [reader.read(entry) for entry in entries]
    assert [record.content for record in records] == [picture(0), picture(1), picture(2, "JPEG")]
    assert [record.caption for record in records] == [None, "grün", "blue"]
    assert [record.fields for record in records] == [{}, {}, {"json": '{"text": "blue", "n": 1}'}]


def test_a_reader_in_another_process_lists_nothing(fs, monkeypatch):
    opened = open_input("memory://photos")
    [entry, *_] = opened.entries()
    reader = pickle.loads(pickle.dumps(opened))
    monkeypatch.setattr(type(fs), "find", lambda *_, **__: pytest.fail("lists"))
    assert reader.read(entry).content


def test_what_has_changed_or_gone_since_the_listing_is_told(fs, picture):
    opened = open_input("memory://photos")
    before = opened.entries()
    fs.pipe_file("/photos/b.png", picture(0) + b"more")
    with pytest.raises(ValueError, match=r"memory://photos/b.png: expected \d+ bytes as listed, got \d+ bytes; plan"):
        opened.read(before[0])
    fs.rm("/photos/b.png")
    with pytest.raises(ValueError, match="b.png: expected .* as listed, got none; plan again"):
        opened.read(before[0])
    fs.pipe_file("/photos/b.png", picture(0))
    after = open_input("memory://photos").entries()
    assert after[0].version != before[0].version and after[1:] == before[1:]
    with pytest.raises(ValueError, match="too odd"):
        opened.read(Entry("x", "x", problem="too odd"))


def test_a_url_without_pictures_and_options_without_meaning_are_refused(fs):
    with pytest.raises(ValueError, match="memory://photos/none: expected pictures .* below this URL, found none"):
        open_input("memory://photos/none").entries()
    with pytest.raises(ValueError, match="image='x' means nothing for pictures behind a URL"):
        open_input("memory://photos", image="x")
