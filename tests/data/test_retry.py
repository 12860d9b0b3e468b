import errno
import socket

import pytest

from vistok.data.retry import Backoff, is_transient


class _Answer(OSError):
    """As botocore tells of an answer, through the error that s3fs makes of it."""

    def __init__(self, status: int) -> None:
        super().__init__(errno.EIO, "said by a server")
        self.__cause__ = Exception()
        self.__cause__.response = {"ResponseMetadata": {"HTTPStatusCode": status}}


def test_what_is_of_the_moment_and_what_is_not():
    moment = [TimeoutError(), ConnectionResetError(), OSError("no number"), OSError(errno.EBUSY, "busy")]
    moment += [socket.gaierror(socket.EAI_AGAIN, "later"), _Answer(503), _Answer(500), _Answer(429)]
    lasting = [FileNotFoundError(), PermissionError(), FileExistsError(), OSError(errno.ENOSPC, "full"), ValueError()]
    lasting += [socket.gaierror(socket.EAI_NONAME, "none"), _Answer(403), _Answer(507), OSError(errno.EINVAL, "odd")]
    assert [error for error in moment if not is_transient(error)] == []
    assert [error for error in lasting if is_transient(error)] == []


def test_it_is_tried_as_often_as_said_and_not_after_a_lasting_error(monkeypatch):
    waited = []
    monkeypatch.setattr("time.sleep", waited.append)
    calls = []

    def fails(error: Exception, times: int) -> int:
        calls.append(1)
        if len(calls) <= times:
            raise error
        return len(calls)

    assert Backoff(attempts=4).run(lambda: fails(TimeoutError(), 3)) == 4
    calls.clear()
    with pytest.raises(TimeoutError):
        Backoff(attempts=4).run(lambda: fails(TimeoutError(), 4))
    assert len(calls) == 4 and len(waited) == 6
    calls.clear()
    with pytest.raises(PermissionError):
        Backoff(attempts=4).run(lambda: fails(PermissionError(), 4))
    assert len(calls) == 1


def test_waits_grow_up_to_a_bound(monkeypatch):
    waited = []
    monkeypatch.setattr("time.sleep", waited.append)
    monkeypatch.setattr("random.uniform", lambda low, high: high)
    for attempt in range(1, 7):
        Backoff(first=0.5, longest=4.0).wait(attempt)
    assert waited == [0.5, 1.0, 2.0, 4.0, 4.0, 4.0]
    with pytest.raises(ValueError, match="attempts >= 1"):
        Backoff(attempts=0)
