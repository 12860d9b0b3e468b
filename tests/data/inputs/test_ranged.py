import importlib.util
import io
import os
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import fsspec
import pytest

from vistok.data.inputs.ranged import LocalRanged, RemoteFile, ranged, read_at, size_at, version_at
from vistok.data.remote import RemoteFiles

CONTENT = bytes(range(256)) * 4096


@pytest.fixture
def remote(request) -> RemoteFile:
    fs = fsspec.filesystem("memory")
    request.addfinalizer(lambda: fs.rm("/ranged", recursive=True))
    fs.pipe_file("/ranged/a.bin", CONTENT)
    return RemoteFile(RemoteFiles("memory://ranged"), "a.bin")


@pytest.fixture
def asked(monkeypatch) -> list[tuple[int, int]]:
    """The ranges that are asked for."""
    found: list[tuple[int, int]] = []
    ranges = RemoteFiles.ranges
    monkeypatch.setattr(
        RemoteFiles, "ranges", lambda self, all_: found.extend(one[1:] for one in all_) or ranges(self, all_)
    )
    return found


def test_a_file_that_ends_too_early_is_an_error(tmp_path):
    (tmp_path / "file").write_bytes(b"12345")
    with open(tmp_path / "file", "rb") as file:
        assert read_at(LocalRanged(file.fileno()), 3, 2) == b"345"
        with pytest.raises(ValueError, match="1 bytes before"):
            read_at(LocalRanged(file.fileno()), 4, 2)


def test_a_remote_file_reads_as_a_local_one(remote, tmp_path, asked):
    (tmp_path / "file").write_bytes(CONTENT)
    end = len(CONTENT)
    spans = [(3, 2), (0, 5), (10, end - 4), (5, end), (7, end + 9), (end, 0)]
    with ranged(tmp_path / "file") as local, ranged(remote) as there:
        assert local.read_many(spans) == there.read_many(spans) == there.walked().read_many(spans)
        assert [local.read(*span) for span in spans] == [there.read(*span) for span in spans]
    assert size_at(remote) == size_at(tmp_path / "file") == end
    assert asked[:3] == [(2, 5), (end - 4, end), (0, end)]


def test_a_walk_asks_for_few_ranges_and_a_stream_for_what_is_read(remote, asked):
    walk = remote.walked()
    assert b"".join(walk.read(512, at) for at in range(0, len(CONTENT), 512)) == CONTENT and len(asked) == 4
    asked.clear()
    stream = remote.stream()
    stream.seek(-6, io.SEEK_END)
    assert stream.read(4) == CONTENT[-6:-2] and stream.tell() == len(CONTENT) - 2 and stream.read() == CONTENT[-2:]
    assert asked[0] == (len(CONTENT) - 6, len(CONTENT) - 2)


def test_a_version_is_of_the_object_and_what_is_not_there_is_named(remote):
    before = version_at(remote)
    fsspec.filesystem("memory").pipe_file("/ranged/a.bin", b"other")
    assert version_at(RemoteFile(RemoteFiles("memory://ranged"), "a.bin")) != before == version_at(remote)
    with pytest.raises(FileNotFoundError, match="no such object: memory://ranged/b"):
        _ = RemoteFile(RemoteFiles("memory://ranged"), "b").size


class Quiet(SimpleHTTPRequestHandler):
    """Knows neither ranges nor checksums, only when a file was changed."""

    def log_message(self, *_):
        pass


@pytest.mark.skipif(importlib.util.find_spec("aiohttp") is None, reason="needs aiohttp (extra s3)")
@pytest.mark.filterwarnings("ignore::ResourceWarning")  # connections of aiohttp that are open when the server goes
def test_a_web_server_without_ranges_is_told_and_one_without_checksums_tells_of_a_change(tmp_path):
    (tmp_path / "a.bin").write_bytes(CONTENT)
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path))) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        try:
            files = RemoteFiles(f"http://127.0.0.1:{server.server_address[1]}")
            with pytest.raises(ValueError, match=r"/a.bin: .* the server serves no ranges, or .* copy it to a disk"):
                RemoteFile(files, "a.bin").read(512, 0)
            before = RemoteFile(files, "a.bin").version
            os.utime(tmp_path / "a.bin", (1, 1))
            assert RemoteFile(files, "a.bin").version != before
        finally:
            server.shutdown()
