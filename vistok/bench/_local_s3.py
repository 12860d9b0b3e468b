"""An S3 server on this machine that fails a part of its requests, by a seed. Needs moto, flask and s3fs."""

import os
import random
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.request import Request, urlopen

BUCKET = "bucket"
_ERROR = "<?xml version='1.0'?><Error><Code>{code}</Code><Message>made to fail</Message></Error>"
Environ = dict[str, Any]
StartResponse = Callable[..., Any]


class FailingApp:
    """A WSGI application in front of another: of `rate` of the requests, half are refused and half lose their answer.

    full: nothing more is taken in. puts: how many objects of a store's shards have been written. failed: requests that
    were made to fail.
    """

    def __init__(self, app: Callable[[Environ, StartResponse], Iterable[bytes]], seed: int) -> None:
        self.rate, self.full = 0.0, False
        self.puts = self.failed = self.requests = self.refused_as_full = 0
        self._app = app
        self._random = random.Random(seed)
        self._lock = threading.Lock()

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        put = environ["REQUEST_METHOD"] == "PUT"
        with self._lock:
            self.requests += 1
            self.puts += put and "/shards/" in environ["PATH_INFO"]
            draw = self._random.random()
            fails = draw < self.rate
            self.failed += fails
            self.refused_as_full += self.full and put
        if self.full and put:
            _take_in(environ)
            return _refuse(start_response, "507 Insufficient Storage", "XMinioStorageFull")
        if fails and draw < self.rate / 2:
            _take_in(environ)
            return _refuse(start_response, "503 Service Unavailable", "SlowDown")
        if not fails:
            return self._app(environ, start_response)
        # It is carried out, but nobody is told.
        answer = self._app(environ, lambda *_: None)
        for _ in answer:
            pass
        return _refuse(start_response, "500 Internal Server Error", "InternalError")


def _take_in(environ: Environ) -> None:
    # What is not read would break the connection, which is another failure than this one.
    environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))


def _refuse(start_response: StartResponse, status: str, code: str) -> Iterable[bytes]:
    body = _ERROR.format(code=code).encode()
    start_response(status, [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))])
    return [body]


@contextmanager
def local_s3(seed: int = 0) -> Iterator[tuple[str, FailingApp]]:
    """URL of an empty bucket, for this process and those it starts; and what makes its requests fail (rate 0 at first).

    Raises: ImportError naming the extra.
    """
    try:
        from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
        from s3fs import S3FileSystem
        from werkzeug.serving import WSGIRequestHandler, make_server
    except ImportError as error:
        raise ImportError(
            "a local S3 server needs moto and s3fs; install the extra: pip install 'vistok[bench]'"
        ) from error

    # Says nothing: failures are made here.
    quiet = type("Quiet", (WSGIRequestHandler,), {"log": lambda self, *_: None})
    app = FailingApp(DomainDispatcherApplication(create_backend_app), seed)
    server = make_server("127.0.0.1", 0, app, threaded=True, request_handler=quiet)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    wanted = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.server_address[1]}",
        "AWS_ACCESS_KEY_ID": "local",
        "AWS_SECRET_ACCESS_KEY": "local",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    S3FileSystem.clear_instance_cache()  # one that is kept would ask another server
    try:
        # moto keeps what it holds for the whole process: an earlier server's bucket would still be there.
        with urlopen(Request(wanted["AWS_ENDPOINT_URL"] + "/moto-api/reset", method="POST")):
            S3FileSystem().mkdir(BUCKET)
        yield f"s3://{BUCKET}", app
    finally:
        S3FileSystem.clear_instance_cache()
        for name, value in before.items():
            if value is None:
                os.environ.pop(name)
            else:
                os.environ[name] = value
        server.shutdown()
        thread.join()
        server.server_close()
