"""Lists of URLs, fetched from a server on this machine."""

import json
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vistok.data.encode import run_plan
from vistok.data.encode_shard import Schedule
from vistok.data.inputs.fetch import FetchRules, fetch
from vistok.data.inputs.open import open_input
from vistok.data.plan import EncodeSettings, make_plan
from vistok.data.retry import Backoff
from vistok.data.store import TokenStore

HERE = FetchRules(private=True, timeout=5.0, backoff=Backoff(1))


class _Pages(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        pages, asked = self.server.pages, self.server.asked
        asked.append(self.path)
        answers = pages.get(self.path, [(404, {}, b"")])
        answer = answers[0] if len(answers) == 1 else answers.pop(0)
        if callable(answer):
            answer(self)
            return
        status, headers, body = answer
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def web() -> Iterator[ThreadingHTTPServer]:
    """A server: `pages` are the answers by path, in turn, the last one for ever; `asked` are the paths it was asked."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Pages)
    server.daemon_threads = True
    server.pages, server.asked = {}, []
    server.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def ok(content: bytes):
    return [(200, {}, content)]


def to(place: str):
    return [(302, {"Location": place}, b"")]


def test_lists_of_all_kinds_give_pictures_captions_and_fields(web, tmp_path, picture):
    web.pages |= {f"/{number}.png": ok(picture(number)) for number in range(3)}
    urls = [f"{web.url}/{number}.png" for number in range(3)]
    (tmp_path / "list.txt").write_text("# pictures\n" + "\n\n".join(urls) + "\n")
    rows = {"id": ["007", "b", "c"], "url": urls, "caption": ["one", "two, too", ""]}
    lines = [f'{key},{url},"{caption}"' for key, url, caption in zip(*rows.values(), strict=True)]
    (tmp_path / "list.csv").write_text("\n".join([",".join(rows), *lines]))
    pq.write_table(pa.table(rows | {"score": [1, 2, 3]}), tmp_path / "list.parquet")
    for name, key in (("list.txt", None), ("list.csv", "id"), ("list.parquet", "id")):
        opened = open_input(tmp_path / name, key=key, urls=HERE)
        entries = opened.entries()
        assert [entry.key for entry in entries] == (rows["id"] if key else [f"list.txt/{at}" for at in range(3)])
        records = [opened.read(entry) for entry in entries]
        assert [record.content for record in records] == [picture(number) for number in range(3)]
        assert [record.fields["url"] for record in records] == urls
        assert [record.caption for record in records] == (rows["caption"] if key else [None] * 3)
    assert open_input(tmp_path / "list.parquet", urls=HERE).fields.names == ["id", "url", "score"]


def test_what_fails_is_told_per_sample_and_the_run_goes_on(web, discrete_tokenizer, tmp_path, picture):
    web.pages |= {"/good.png": ok(picture(1)), "/page": ok(b"<html>"), "/big": ok(b"x" * 5000)}
    names = ["/good.png", "/gone", "/page", "/big"]
    (tmp_path / "list.txt").write_text("\n".join([*(web.url + name for name in names), "ftp://host/x.png", "no url"]))
    rules = FetchRules(private=True, max_bytes=4000, backoff=Backoff(1))
    opened = open_input(tmp_path / "list.txt", urls=rules)
    plan = make_plan(discrete_tokenizer, opened, EncodeSettings(threads=1))
    assert web.asked == []  # planning fetches nothing
    summary = run_plan(plan, discrete_tokenizer, tmp_path / "store")
    assert (summary.images, summary.errors) == (1, 5)
    assert TokenStore(tmp_path / "store").rows[0]["url"] == f"{web.url}/good.png"
    lines = (tmp_path / "store/errors/00000.jsonl").read_text().splitlines()
    told = {error["key"]: (error["error"], error["message"]) for error in map(json.loads, lines)}
    assert told["list.txt/1"] == ("ValueError", f"{web.url}/gone: expected status 200, got 404 Not Found")
    assert told["list.txt/3"] == ("ValueError", f"{web.url}/big: expected at most 4000 bytes, it has 5000")
    assert told["list.txt/4"] == ("PermissionError", "ftp://host/x.png: expected a URL of http, https, got 'ftp'")
    assert told["list.txt/5"][0] == "PermissionError" and told["list.txt/2"][0] == "ValueError"
    with pytest.raises(ValueError, match="more than 50.00% of the pictures failed"):
        run_plan(plan, discrete_tokenizer, tmp_path / "strict", Schedule(max_error_rate=0.5))


@pytest.fixture
def discrete_tokenizer():
    import vistok

    return vistok.tokenizer("vq_nano", **vistok.info("tokenizer", "vq_nano").tiny).eval()


def test_addresses_that_are_not_public_are_refused_unless_allowed(web):
    web.pages["/x"] = ok(b"content")
    with pytest.raises(PermissionError, match=r"127.0.0.1 is 127.0.0.1, no public address.*--url-private"):
        fetch(f"{web.url}/x", FetchRules())
    assert web.asked == [] and fetch(f"{web.url}/x", HERE) == b"content"
    private = ["10.0.0.1", "192.168.1.1", "172.16.0.1", "169.254.169.254", "0.0.0.0", "[::1]", "[::ffff:127.0.0.1]"]
    private += [
        "[fe80::1]",
        "[fd00::1]",
        "[64:ff9b::7f00:1]",
        "[2002:7f00:1::]",
        "224.0.0.1",
        "100.64.0.1",
        "localhost",
    ]
    for host in private:
        with pytest.raises(PermissionError, match="no public address"):
            fetch(f"http://{host}/latest/meta-data", FetchRules())


def test_the_connection_goes_to_the_address_that_was_checked(web, monkeypatch):
    """A name that means another address the second time it is asked for."""
    web.pages["/x"] = ok(b"content")
    answers = [[(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("93.184.216.34", 80))]]
    connected = []

    def resolve(host, *_, **__):
        return answers.pop(0) if answers else [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 80))]

    def connect(address, timeout):
        connected.append(address)
        raise ConnectionRefusedError("as far as this test goes")

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    monkeypatch.setattr(socket, "create_connection", connect)
    with pytest.raises(ConnectionRefusedError):
        fetch("http://rebinding.example/x", FetchRules(backoff=Backoff(1)))
    assert connected == [("93.184.216.34", 80)]
    with pytest.raises(PermissionError, match="rebinding.example is 127.0.0.1"):
        fetch("http://rebinding.example/x", FetchRules(backoff=Backoff(1)))


def test_a_redirect_is_followed_under_the_same_rules(web):
    web.pages |= {"/a": to("/b"), "/b": to(f"{web.url}/c"), "/c": ok(b"there"), "/round": to("/round")}
    web.pages |= {"/file": to("file:///etc/passwd"), "/ftp": to("ftp://host/x"), "/user": to("http://u:p@127.0.0.1/x")}
    assert fetch(f"{web.url}/a", HERE) == b"there"
    for path in ("/file", "/ftp", "/user"):
        with pytest.raises(PermissionError, match="expected a URL"):
            fetch(web.url + path, HERE)
    with pytest.raises(PermissionError, match="expected a URL of https, got 'http'"):
        fetch(f"{web.url}/a", FetchRules(schemes=("https",), private=True))
    with pytest.raises(ValueError, match="/round: expected at most 5 redirects"):
        fetch(f"{web.url}/round", HERE)


def test_a_redirect_to_an_address_that_is_not_public_is_refused(web, monkeypatch):
    from vistok.data.inputs import fetch as module

    web.pages["/a"] = to("http://10.0.0.1/secret")
    monkeypatch.setattr(module, "_is_public", lambda address: not address.startswith("10."))
    with pytest.raises(PermissionError, match="10.0.0.1 is 10.0.0.1, no public address"):
        fetch(f"{web.url}/a", FetchRules(backoff=Backoff(1)))


def test_sizes_and_times_are_bounded(web):
    release = threading.Event()

    def endless(handler):
        handler.send_response(200)
        handler.end_headers()
        while not release.is_set():
            handler.wfile.write(b"x" * 1000)

    def silent(handler):
        release.wait(10)

    def drop_by_drop(handler):
        handler.send_response(200)
        handler.send_header("Content-Length", "100000")
        handler.end_headers()
        while not release.wait(0.02):
            handler.wfile.write(b"x")

    def cut(handler):
        handler.send_response(200)
        handler.send_header("Content-Length", "10")
        handler.end_headers()
        handler.wfile.write(b"abc")
        handler.close_connection = True

    web.pages |= {"/endless": [endless], "/silent": [silent], "/drops": [drop_by_drop], "/cut": [cut]}
    web.pages["/zip"] = [(200, {"Content-Encoding": "gzip"}, b"x")]
    short = FetchRules(private=True, timeout=0.2, limit=0.5, max_bytes=5000, backoff=Backoff(1))
    begin = time.monotonic()
    try:
        with pytest.raises(ValueError, match="expected at most 5000 bytes, got more"):
            fetch(f"{web.url}/endless", short)
        with pytest.raises(TimeoutError, match="expected a sign of life within 0.2 s"):
            fetch(f"{web.url}/silent", short)
        with pytest.raises(TimeoutError, match="expected an answer within 0.5 s"):
            fetch(f"{web.url}/drops", FetchRules(private=True, limit=0.5, backoff=Backoff(1)))
        with pytest.raises(ConnectionError, match="expected 10 bytes, the connection ended after 3"):
            fetch(f"{web.url}/cut", short)
        with pytest.raises(ValueError, match="expected plain content, got gzip"):
            fetch(f"{web.url}/zip", short)
    finally:
        release.set()
    assert time.monotonic() - begin < 60  # and not for ever


def test_what_fails_for_a_moment_is_tried_again_and_what_does_not_is_not(web):
    web.pages["/busy"] = [(503, {}, b""), (429, {}, b""), (200, {}, b"at last")]
    rules = FetchRules(private=True, backoff=Backoff(3, first=0.0))
    assert fetch(f"{web.url}/busy", rules) == b"at last" and len(web.asked) == 3
    with pytest.raises(ValueError, match="404"):
        fetch(f"{web.url}/gone", rules)
    assert len(web.asked) == 4


def test_rules_and_lists_that_make_no_sense_are_refused(tmp_path):
    with pytest.raises(ValueError, match="expected schemes out of http, https, got file"):
        FetchRules(schemes=("file",))
    (tmp_path / "a.txt").write_text("http://host/x")
    (tmp_path / "b.csv").write_text("url\nhttp://host/x\n")
    with pytest.raises(ValueError, match="expected URLs in files of one kind"):
        open_input(tmp_path, urls=FetchRules())
    (tmp_path / "c.csv").write_text("left,right\na,b\n")
    with pytest.raises(ValueError, match="expected one column of pictures, got left, right; say which by image="):
        open_input(tmp_path / "c.csv", urls=FetchRules()).entries()
    for url in ("http://", "http://host:notaport/", "http://ho\nst/", "http:///path"):
        with pytest.raises(ValueError, match="expected a URL"):
            fetch(url, FetchRules())
