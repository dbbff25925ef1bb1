"""Images by URL, for strangers: fetched from public addresses only, so that nobody reaches what only this machine can.

A URL may name an address in the network of the server, such as the one from which cloud machines get their keys; its
host may resolve to one, at once or only the second time it is asked; and what it names may redirect there. Therefore
every host is resolved once, all its addresses must be public, the connection goes to the address that was checked, and
a redirect is a new URL.
"""

from __future__ import annotations

import contextlib
import http.client
import socket
import ssl
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple
from urllib.parse import quote, urljoin, urlsplit

from rtdetrv4.addresses import is_public
from rtdetrv4.serving.budget import Budget
from rtdetrv4.serving.refusals import RefusedError, busy

PORTS = {"http": 80, "https": 443}
"""The only ones: a server that connects to any port tells which are open."""
MAX_URL = 2048
MAX_REDIRECTS = 3
REDIRECTS = (301, 302, 303, 307, 308)
TIMEOUT_S = 10.0
"""For all of it: connecting, redirects, and every byte."""
NUM_THREADS, MAX_FETCHES = 4, 16
CHUNK = 64 * 1024

Resolve = Callable[[str, int], Sequence[str]]


class _Target(NamedTuple):
    scheme: str
    host: str
    port: int
    path: str


def resolve(host: str, port: int) -> list[str]:
    """The addresses of a host.

    Raises:
        OSError: it has none.
    """
    return [str(found[4][0]) for found in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]


class Fetcher:
    """Fetches images, a few at once.

    Args:
        max_bytes: the largest image.
        timeout_s: for one URL, with its redirects.
        resolve: finds the addresses of a host.
        is_public: whether an address may be connected to.
        ports: the port of each scheme that is allowed.
    """

    def __init__(
        self,
        max_bytes: int,
        *,
        timeout_s: float = TIMEOUT_S,
        resolve: Resolve = resolve,
        is_public: Callable[[str], bool] = is_public,
        ports: dict[str, int] = PORTS,
    ) -> None:
        self._max_bytes = max_bytes
        self._timeout_s = timeout_s
        self._resolve = resolve
        self._is_public = is_public
        self._ports = ports
        self._places = Budget(MAX_FETCHES)
        self._pool = ThreadPoolExecutor(NUM_THREADS, thread_name_prefix="fetch")

    def start(self, url: str) -> Future[bytes]:
        """Begin to fetch.

        Returns:
            A future of the bytes, or of the `RefusedError` that says why there are none.

        Raises:
            RefusedError: too many are being fetched.
        """
        if not self._places.take(1):
            raise busy(f"{MAX_FETCHES} images are being fetched")
        future = self._pool.submit(self.fetch, url)
        future.add_done_callback(lambda _: self._places.give(1))
        return future

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def fetch(self, url: str) -> bytes:
        """Fetch now.

        Raises:
            RefusedError: it is no URL that strangers may give, or nothing could be fetched.
        """
        deadline = time.monotonic() + self._timeout_s
        for _ in range(MAX_REDIRECTS + 1):
            found = self._ask(self._target(url), deadline)
            if isinstance(found, bytes):
                return found
            try:
                url = urljoin(url, found)
            except ValueError:
                raise _failed("it redirects to what is no URL") from None
        raise _failed(f"it redirects more than {MAX_REDIRECTS} times")

    def _target(self, url: str) -> _Target:
        """What a URL names.

        Raises:
            RefusedError: it is not one that may be fetched.
        """
        try:
            parts = urlsplit(url)
            host, port = (parts.hostname or "").encode("idna").decode(), parts.port
        except (ValueError, UnicodeError):
            raise _wrong("it cannot be parsed") from None
        if len(url) > MAX_URL or not url.isprintable() or " " in url:
            raise _wrong(f"it is longer than {MAX_URL} characters, or has some that do not belong there")
        if parts.scheme not in self._ports or not host:
            raise _wrong("it has another scheme, or no host")
        if parts.username is not None or parts.password is not None:
            raise _wrong("it has a name and a password")
        allowed = self._ports[parts.scheme]
        if port not in (None, allowed):
            raise _wrong("it has another port than its scheme")
        path = quote(parts.path or "/", safe="/%:@!$&'()*+,;=~")
        query = f"?{quote(parts.query, safe='/%:@!$&()*+,;=~?')}" if parts.query else ""
        return _Target(parts.scheme, host, allowed, path + query)

    def _address(self, target: _Target) -> str:
        """The one address to connect to.

        Raises:
            RefusedError: there is none, or one that is not public; which of them is not told.
        """
        try:
            addresses = list(self._resolve(target.host, target.port))
        except (OSError, UnicodeError):
            addresses = []
        if not addresses or not all(map(self._is_public, addresses)):
            raise RefusedError(
                422,
                "unreachable_url",
                "url: its host has no address, or one that is not public",
                expected="a public host",
            )
        return addresses[0]

    def _ask(self, target: _Target, deadline: float) -> bytes | str:
        """The body of the answer, or where it redirects to."""
        address = self._address(target)
        left = deadline - time.monotonic()
        if left <= 0:
            raise _failed("it takes too long")
        try:
            with contextlib.closing(_connect(target, address, left)) as connection:
                # A server that sends a byte now and then would never let a time-out of reading pass.
                timer = threading.Timer(max(deadline - time.monotonic(), 0), _cut, [connection.sock])
                timer.start()
                try:
                    connection.request("GET", target.path, headers={"Accept": "image/*", "Accept-Encoding": "identity"})
                    with contextlib.closing(connection.getresponse()) as response:
                        found = self._body(response)
                finally:
                    timer.cancel()
                if time.monotonic() >= deadline:  # what was cut off looks like an end
                    raise TimeoutError
                return found
        except (OSError, http.client.HTTPException, ValueError):
            reason = "it takes too long" if time.monotonic() >= deadline else "the connection fails"
            raise _failed(reason) from None

    def _body(self, response: http.client.HTTPResponse) -> bytes | str:
        if response.status in REDIRECTS and (location := response.headers.get("Location")):
            return location
        if response.status != 200:
            raise _failed(f"it answers {response.status}")
        if response.headers.get("Content-Encoding", "identity") != "identity":
            raise _failed("it is compressed once more")
        body = bytearray()
        while chunk := response.read(CHUNK):
            body += chunk
            if len(body) > self._max_bytes:
                raise RefusedError(
                    413, "image_too_large", "url: the image is too large", expected=f"at most {self._max_bytes} bytes"
                )
        if response.length:  # the connection ended early
            raise _failed("it ends early")
        return bytes(body)


def _connect(target: _Target, address: str, timeout_s: float) -> http.client.HTTPConnection:
    """A connection to this very address, in the name of the host."""
    host = f"[{target.host}]" if ":" in target.host else target.host
    connection = http.client.HTTPConnection(host, target.port, timeout=timeout_s)
    plain = socket.create_connection((address, target.port), timeout_s)
    try:
        connection.sock = plain
        if target.scheme == "https":
            connection.default_port = target.port  # so that the Host header does without it
            connection.sock = ssl.create_default_context().wrap_socket(plain, server_hostname=target.host)
    except BaseException:
        plain.close()
        raise
    return connection


def _cut(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


def _wrong(why: str) -> RefusedError:
    return RefusedError(
        422, "bad_url", f"url: {why}", expected="http://HOST/PATH or https://HOST/PATH, without a port or a password"
    )


def _failed(why: str) -> RefusedError:
    return RefusedError(422, "unreachable_url", f"url: the image cannot be fetched: {why}")
