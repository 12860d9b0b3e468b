"""Fetch a picture from the web: only by schemes that are allowed, only from public addresses, in bounded time and size.

A list of URLs comes from strangers, and so does where they redirect to: each hop is checked before anything is sent,
and the connection goes to the very address that was checked, not to what the name means a moment later.
"""

import http.client
import ipaddress
import socket
import ssl
import threading
import time
from dataclasses import dataclass, field
from urllib.parse import SplitResult, urljoin, urlsplit

from vistok.data.retry import Backoff

SCHEMES = ("http", "https")
_REDIRECTS = (301, 302, 303, 307, 308)
_MOMENTARY = (408, 425, 429, 500, 502, 503, 504)
_BLOCK = 1 << 16
_HEADERS = {"User-Agent": "vistok", "Accept": "image/*", "Accept-Encoding": "identity", "Connection": "close"}


@dataclass(frozen=True)
class FetchRules:
    """What may be fetched. schemes: out of http and https. timeout: seconds without an answer; limit: in all, per try.

    max_bytes: of one picture. redirects: how many are followed, each under the same rules. private: also from
    addresses that are not public (this machine, the local network, cloud metadata). backoff: tries for what fails for
    a moment.
    """

    schemes: tuple[str, ...] = SCHEMES
    timeout: float = 10.0
    limit: float = 60.0
    max_bytes: int = 64 << 20
    redirects: int = 5
    private: bool = False
    backoff: Backoff = field(default_factory=lambda: Backoff(attempts=3, first=0.5))

    def __post_init__(self) -> None:
        """Raises: ValueError naming what is out of range."""
        if not self.schemes or {*self.schemes} - {*SCHEMES}:
            raise ValueError(f"fetch: expected schemes out of {', '.join(SCHEMES)}, got {', '.join(self.schemes)}")
        if self.timeout <= 0 or self.limit <= 0 or self.max_bytes < 1 or self.redirects < 0:
            raise ValueError(f"fetch: expected times and sizes > 0 and redirects >= 0, got {self}")


def fetch(url: str, rules: FetchRules) -> bytes:
    """What lies at a URL.

    Raises: PermissionError for a scheme or address that is not allowed; ValueError for what is no URL, or an answer
    that is too large or not what was asked for; TimeoutError; OSError with the status for any other answer.
    """
    return rules.backoff.run(lambda: _follow(url, rules))


def _follow(url: str, rules: FetchRules) -> bytes:
    deadline = time.monotonic() + rules.limit
    asked = url
    for _ in range(rules.redirects + 1):
        answer = _ask(asked, rules, deadline)
        if isinstance(answer, bytes):
            return answer
        asked = urljoin(asked, answer)
    raise ValueError(
        f"{url}: expected at most {rules.redirects} redirects, got more; the last one led to {asked[:200]}"
    )


def _ask(url: str, rules: FetchRules, deadline: float) -> bytes | str:
    """The content, or where it is said to be."""
    parts = _checked(url, rules)
    host, port = str(parts.hostname), parts.port or {"http": 80, "https": 443}[parts.scheme]
    address = _address(url, host, port, rules)
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    connection = _Pinned(parts.scheme, host, port, address, rules.timeout)
    late = False

    def cut() -> None:
        nonlocal late
        late = True
        connection.cut()

    # A server that sends a byte now and then meets no time-out of the socket.
    watch = threading.Timer(max(0.0, deadline - time.monotonic()), cut)
    watch.daemon = True
    watch.start()
    try:
        connection.request("GET", target.replace(" ", "%20"), headers=_HEADERS)
        return _answer(url, connection.getresponse(), rules)
    except (OSError, http.client.HTTPException) as error:
        if late:
            raise TimeoutError(f"{url}: expected an answer within {rules.limit:g} s") from error
        if isinstance(error, TimeoutError):
            raise TimeoutError(f"{url}: expected a sign of life within {rules.timeout:g} s") from error
        if isinstance(error, http.client.HTTPException):
            raise ConnectionError(f"{url}: expected an answer, got {type(error).__name__}: {error}") from error
        raise
    finally:
        watch.cancel()
        connection.close()


def _answer(url: str, response: http.client.HTTPResponse, rules: FetchRules) -> bytes | str:
    place = response.getheader("Location")
    if response.status in _REDIRECTS and place:
        return place
    if response.status != 200:
        said = f"{url}: expected status 200, got {response.status} {response.reason}"
        raise ConnectionError(said) if response.status in _MOMENTARY else ValueError(said)
    if response.getheader("Content-Encoding", "identity") != "identity":
        raise ValueError(f"{url}: expected plain content, got {response.getheader('Content-Encoding')}")
    claimed = response.length
    if claimed is not None and claimed > rules.max_bytes:
        raise ValueError(f"{url}: expected at most {rules.max_bytes} bytes, it has {claimed}")
    found = bytearray()
    while block := response.read(_BLOCK):
        found += block
        if len(found) > rules.max_bytes:
            raise ValueError(f"{url}: expected at most {rules.max_bytes} bytes, got more")
    if claimed is not None and len(found) != claimed:
        raise ConnectionError(f"{url}: expected {claimed} bytes, the connection ended after {len(found)}")
    return bytes(found)


def _checked(url: str, rules: FetchRules) -> SplitResult:
    if any(ord(character) < 33 and character != " " for character in url):
        raise ValueError(f"expected a URL, got {url[:200]!r}")
    try:
        parts = urlsplit(url.strip())
        _ = parts.port
    except ValueError as error:
        raise ValueError(f"expected a URL, got {url[:200]!r}: {error}") from error
    if parts.scheme.lower() not in rules.schemes:
        allowed = ", ".join(rules.schemes)
        raise PermissionError(f"{url[:200]}: expected a URL of {allowed}, got {parts.scheme or 'no scheme'!r}")
    if not parts.hostname:
        raise ValueError(f"expected a URL with a host, got {url[:200]!r}")
    if parts.username is not None or parts.password is not None:
        raise PermissionError(f"{parts.scheme}://...@{parts.hostname}: expected a URL without a user name or password")
    return parts


def _address(url: str, host: str, port: int, rules: FetchRules) -> str:
    """The first address of a host, all of which must be allowed."""
    try:
        found = [info[4][0] for info in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
    except (socket.gaierror, UnicodeError) as error:
        if isinstance(error, socket.gaierror):
            raise socket.gaierror(error.errno, f"{url[:200]}: {host} has no address, {error.strerror}") from error
        raise ValueError(f"{url[:200]}: expected the name of a host, got {host!r}") from error
    for address in found:
        if not rules.private and not _is_public(str(address)):
            raise PermissionError(
                f"{url[:200]}: {host} is {address}, no public address; allow it with --url-private if you mean it"
            )
    return str(found[0])


def _is_public(address: str) -> bool:
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        # Addresses that only wrap one of IPv4.
        inner = ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else None)
        if inner is None and ip in ipaddress.ip_network("64:ff9b::/96"):
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if inner is not None:
            return _is_public(str(inner))
    return ip.is_global and not ip.is_multicast


class _Pinned(http.client.HTTPConnection):
    """A connection to an address that was checked, for a host by name."""

    def __init__(self, scheme: str, host: str, port: int, address: str, timeout: float) -> None:
        super().__init__(host, port, timeout=timeout)
        self._scheme, self._address = scheme, address
        self.default_port = {"http": 80, "https": 443}[scheme]  # what the Host header leaves out

    def connect(self) -> None:
        """Raises: OSError."""
        self.sock = socket.create_connection((self._address, self.port), self.timeout)
        if self._scheme == "https":
            self.sock = _context().wrap_socket(self.sock, server_hostname=self.host)

    def cut(self) -> None:
        """End whatever waits for this connection, from another thread."""
        if self.sock is not None:
            try:
                self.sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                return


_contexts: list[ssl.SSLContext] = []


def _context() -> ssl.SSLContext:
    if not _contexts:  # reading the certificates takes longer than a connection
        _contexts.append(ssl.create_default_context())
    return _contexts[0]
