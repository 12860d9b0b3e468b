"""Try again what fails for a moment: requests to object stores and web servers, with waits that grow and are random.

Waits are drawn from 0 to the bound ("full jitter"), so that many workers that were refused together do not come back
together. Source: M. Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.
"""

import errno
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from socket import EAI_AGAIN, gaierror
from typing import TypeVar

_T = TypeVar("_T")
_PERMANENT = (FileNotFoundError, FileExistsError, PermissionError, NotADirectoryError, IsADirectoryError)
_MOMENTARY = {
    *(errno.EIO, errno.EBUSY, errno.EAGAIN, errno.EINTR, errno.ETIMEDOUT, errno.ENETDOWN, errno.ENETUNREACH),
    *(errno.EHOSTUNREACH, errno.EHOSTDOWN, getattr(errno, "EREMOTEIO", errno.EIO)),
}
_HTTP_MOMENTARY = {408, 425, 429, 500, 502, 503, 504}
# What network libraries raise that is no OSError, by the package that it comes from.
_LIBRARIES = ("aiohttp", "botocore", "aiobotocore", "gcsfs", "urllib3", "requests")


@dataclass(frozen=True)
class Backoff:
    """attempts: in all. Seconds to wait behind attempt n: drawn from 0 to first * 2**(n - 1), at most to `longest`."""

    attempts: int = 6
    first: float = 0.2
    longest: float = 20.0

    def __post_init__(self) -> None:
        """Raises: ValueError naming what is out of range."""
        if self.attempts < 1 or self.first < 0 or self.longest < 0:
            raise ValueError(f"back-off: expected attempts >= 1 and waits >= 0, got {self}")

    def run(self, call: Callable[[], _T]) -> _T:
        """What `call` returns. Raises: its last error, at once if that is not of the moment."""
        for attempt in range(1, self.attempts):
            try:
                return call()
            except Exception as error:
                if not is_transient(error):
                    raise
            self.wait(attempt)
        return call()

    def wait(self, attempt: int) -> None:
        """Sleep behind failed attempt number `attempt`, counted from 1."""
        time.sleep(random.uniform(0.0, min(self.longest, self.first * 2.0 ** (attempt - 1))))


def is_transient(error: BaseException) -> bool:
    """Whether the same request may well succeed a little later: time-outs, lost connections, busy or broken servers."""
    status = http_status(error)
    if status is not None:
        return status in _HTTP_MOMENTARY
    if isinstance(error, _PERMANENT):
        return False
    if isinstance(error, ConnectionError | TimeoutError):
        return True
    if isinstance(error, gaierror):
        return error.errno == EAI_AGAIN
    if isinstance(error, OSError):
        return error.errno is None or error.errno in _MOMENTARY
    return type(error).__module__.partition(".")[0] in _LIBRARIES


def http_status(error: BaseException | None) -> int | None:
    """The status of the response that an error, or what caused it, speaks of (botocore, aiohttp, gcsfs)."""
    while error is not None:
        response = getattr(error, "response", None)
        found = response.get("ResponseMetadata", {}).get("HTTPStatusCode") if isinstance(response, dict) else None
        for name in ("", "status", "code"):  # one by one: aiohttp warns who asks for its code
            status = getattr(error, name, None) if name else found
            if type(status) is int and 300 <= status < 600:
                return status
        error = error.__cause__
    return None
