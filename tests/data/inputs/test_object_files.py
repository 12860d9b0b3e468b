"""Archives and tables behind a URL: the same entries and records as those of the files, by ranges."""

import importlib.util
import json
import pickle
import re
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vistok.data.inputs.box_ids import BoxCodec
from vistok.data.inputs.open import open_input
from vistok.data.remote import RemoteFiles


@pytest.fixture
def fs(request):
    fs = fsspec.filesystem("memory")
    request.addfinalizer(lambda: fs.rm("/inputs", recursive=True))
    fs.makedirs("/inputs", exist_ok=True)
    return fs


@pytest.fixture
def tars(fs, picture, write_tar, tmp_path):
    """Two archives in a folder and behind a URL; each has large members, which a walk should pass over."""
    for number in range(2):
        members = [("x.txt", b"a caption"), ("x.png", picture(number)), ("x.json", json.dumps({"n": number}).encode())]
        members += [(f"y{at}.big", b"0" * 1_000_000) for at in range(3)] + [("z.png", picture(number + 2))]
        path = write_tar(tmp_path / "tars" / f"{number}.tar", members)
        fs.pipe_file(f"/inputs/tars/{number}.tar", path.read_bytes())
    return tmp_path / "tars"


@pytest.fixture
def tables(fs, picture, tmp_path):
    """Two Parquet files of three row groups in a folder and behind a URL."""
    (tmp_path / "tables").mkdir()
    boxes = [[{"bbox": [0, 0, 6, 4], "label": "cat"}]] * 6
    for number in range(2):
        rows = {"image": [picture(at) for at in range(6)], "id": [6 * number + at for at in range(6)], "objects": boxes}
        pq.write_table(pa.table(rows), tmp_path / "tables" / f"{number}.parquet", row_group_size=2)
        fs.pipe_file(f"/inputs/tables/{number}.parquet", (tmp_path / "tables" / f"{number}.parquet").read_bytes())
    return tmp_path / "tables"


@pytest.fixture
def fetched(monkeypatch) -> list[int]:
    """Bytes of each range that is asked for."""
    sizes: list[int] = []
    ranges = RemoteFiles.ranges
    monkeypatch.setattr(
        RemoteFiles, "ranges", lambda self, asked: sizes.extend(one[2] - one[1] for one in asked) or ranges(self, asked)
    )
    return sizes


def told(entries):
    return [(entry.key, entry.source, entry.offset, entry.size, entry.problem) for entry in entries]


@pytest.mark.parametrize("url", ["memory://inputs/tars", "memory://inputs/tars/*.tar", "memory://inputs/t*s/?.tar"])
def test_tars_behind_a_url_give_what_the_files_give_without_what_is_between(tars, url, fetched):
    there, here = open_input(url), open_input(tars)
    if url.endswith("?.tar"):  # named from another folder on
        assert [entry.key for entry in there.entries()] == [f"tars/{entry.key}" for entry in here.entries()]
    else:
        assert told(there.entries()) == told(here.entries())
    assert there.fields == here.fields and there.left_out == here.left_out
    assert sum(fetched) < 2 * 2_000_000 < 2 * 3_000_000  # of 3 MB each
    reader = pickle.loads(pickle.dumps(there))
    for entry, local in zip(there.entries(), here.entries(), strict=True):
        assert reader.read(entry) == here.read(local)


def test_one_tar_and_one_table_may_be_named(tars, tables):
    assert [entry.key for entry in open_input("memory://inputs/tars/1.tar").entries()] == ["1.tar/x", "1.tar/z"]
    assert len(open_input("memory://inputs/tables/1.parquet", key="id").entries()) == 6
    for name in ("none.tar", "none.parquet"):
        with pytest.raises(FileNotFoundError, match=f"no such object: memory://inputs/{name}"):
            open_input(f"memory://inputs/{name}")
    with pytest.raises(FileNotFoundError, match=re.escape("no object matches memory://inputs/*.tar")):
        open_input("memory://inputs/*.tar")


def test_tables_behind_a_url_give_what_the_files_give(tables, fetched):
    options = {"key": "id", "boxes": ("objects", BoxCodec())}
    there, here = open_input("memory://inputs/tables", **options), open_input(tables, **options)
    assert told(there.entries()) == told(here.entries()) and there.fields == here.fields
    reader = pickle.loads(pickle.dumps(there))
    entries = there.entries()
    for entry, local in zip(entries, here.entries(), strict=True):
        assert reader.read(entry) == here.read(local)
    assert reader.read(entries[5]).fields["box_labels"] == ["cat"]


def test_one_row_is_read_without_the_other_row_groups(fs, tmp_path, fetched):
    noise = [bytes([at]) * 300_000 for at in range(8)]
    table = pa.table({"image": [b"".join(noise[at:]) + bytes(at) for at in range(8)]})
    pq.write_table(table, tmp_path / "t.parquet", row_group_size=1, compression="none", use_dictionary=False)
    fs.pipe_file("/inputs/t.parquet", (tmp_path / "t.parquet").read_bytes())
    source = open_input("memory://inputs/t.parquet")
    entries = source.entries()
    fetched.clear()
    assert source.read(entries[7]).content == noise[7] + bytes(7)
    assert sum(fetched) < 2_000_000 < (tmp_path / "t.parquet").stat().st_size


def test_an_archive_that_was_replaced_is_told_by_who_opens_it_next(tars, fs, picture):
    source = open_input("memory://inputs/tars")
    entry = source.entries()[0]
    reader = pickle.loads(pickle.dumps(source))
    fs.pipe_file("/inputs/tars/0.tar", fs.cat_file("/inputs/tars/1.tar") + bytes(1024))
    with pytest.raises(ValueError, match="tars/0.tar: expected the file that was listed, it has changed since"):
        reader.read(entry)


def test_what_cannot_be_read_behind_a_url_is_refused(fs, tars, picture):
    fs.pipe_file("/inputs/mixed/a.png", picture(0))
    fs.pipe_file("/inputs/mixed/a.tar", b"")
    fs.pipe_file("/inputs/arrow/a.arrow", b"")
    fs.pipe_file("/inputs/packed/a.tar.gz", b"")
    with pytest.raises(ValueError, match="expected one kind of input, found 1 pictures and 1 tar files"):
        open_input("memory://inputs/mixed")
    with pytest.raises(ValueError, match="expected pictures, .tar or .parquet files behind a URL, got Arrow streams"):
        open_input("memory://inputs/arrow")
    with pytest.raises(ValueError, match="packed/a.tar.gz: expected a plain .tar"):
        open_input("memory://inputs/packed")
    with pytest.raises(ValueError, match="got a pattern; name their folder, which must hold"):
        open_input("memory://inputs/mixed/*.png")
    with pytest.raises(ValueError, match="image='x' means nothing for tar files behind a URL"):
        open_input("memory://inputs/tars", image="x")
    with pytest.raises(ValueError, match=r"a web server lists nothing; name one .tar or .parquet file"):
        open_input("https://example.com/photos")


def test_an_object_whose_name_is_no_tidy_path_is_read(fs, tars):
    for name in ("a//0.tar", "./1.tar"):
        fs.pipe_file(f"/inputs/odd/{name}", fs.cat_file("/inputs/tars/0.tar"))
    there = open_input("memory://inputs/odd")
    entries = there.entries()
    assert [entry.key for entry in entries] == ["./1.tar/x", "./1.tar/z", "a//0.tar/x", "a//0.tar/z"]
    reader = pickle.loads(pickle.dumps(there))
    assert all(reader.read(entry) == there.read(entry) for entry in entries)


def test_brackets_may_be_part_of_a_name_and_are_a_pattern_otherwise(fs, tars, picture):
    fs.pipe_file("/inputs/photos [1]/a.png", picture(0))
    fs.pipe_file("/inputs/more/[0].tar", fs.cat_file("/inputs/tars/0.tar"))
    assert [entry.key for entry in open_input("memory://inputs/photos [1]").entries()] == ["a.png"]
    assert [entry.key for entry in open_input("memory://inputs/more/[0].tar").entries()] == ["[0].tar/x", "[0].tar/z"]
    assert [entry.key for entry in open_input("memory://inputs/tars/[0].tar").entries()] == ["0.tar/x", "0.tar/z"]


@pytest.mark.skipif(importlib.util.find_spec("aiohttp") is None, reason="needs aiohttp (extra s3)")
@pytest.mark.filterwarnings("ignore::ResourceWarning")  # connections of aiohttp that are open when the server goes
def test_a_tar_and_a_table_on_a_web_server_are_read_by_ranges(tars, tables, tmp_path):
    served: list[int] = []

    class Serve(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self):
            self.answer(whole=True, body=False)

        def do_GET(self):
            self.answer(whole=False, body=True)

        def answer(self, whole, body):
            content = (tmp_path / self.path.lstrip("/")).read_bytes()
            asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
            part = content[int(asked[1]) : int(asked[2]) + 1] if asked and not whole else content
            self.send_response(206 if asked and not whole else 200)
            self.send_header("Content-Length", str(len(part)))
            self.send_header("Accept-Ranges", "bytes")
            self.send_header("ETag", f'"{len(content)}"')
            self.end_headers()
            if body:
                served.append(len(part))
                self.wfile.write(part)

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Serve) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        try:
            for name in ("tars/0.tar", "tables/1.parquet"):
                there = open_input(f"http://127.0.0.1:{server.server_address[1]}/{name}")
                here = open_input(tmp_path / name)
                assert told(there.entries()) == told(here.entries())
                for entry, local in zip(there.entries(), here.entries(), strict=True):
                    assert there.read(entry) == here.read(local)
                assert max(served) < 1_000_000 < 3_000_000  # the size of the tar
        finally:
            server.shutdown()
