"""Following redirects of strangers: never to files, out of encryption, or into a network that they cannot reach."""

from __future__ import annotations

import http.client
import urllib.request
from typing import Any
from urllib.parse import urlsplit

from rtdetrv4.addresses import is_public


class RedirectError(Exception):
    """Where an answer leads is no place to go; says why."""


def safe_opener() -> urllib.request.OpenerDirector:
    """What opens one URL by http or https, and follows where it leads if that is harmless."""
    way = _Way()
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.UnknownHandler(),
        _Redirects(),
        _Http(way),
        _Https(way),
    ):
        opener.add_handler(handler)
    return opener


class _Way:
    """Where a request began."""

    def __init__(self) -> None:
        self._is_public: bool | None = None

    def check(self, connection: http.client.HTTPConnection) -> None:
        """Check the other end of a connection before anything is sent; the name may have had another address before.

        Raises:
            RedirectError: it began at a public address, and this one is not.
        """
        if connection.host in _proxies():  # which decides itself what it reaches
            return
        found = is_public(str(connection.sock.getpeername()[0]))
        if self._is_public is None:
            self._is_public = found
        elif self._is_public and not found:
            connection.close()
            raise RedirectError("it redirects to an address that is not public")


def _proxies() -> set[str | None]:
    return {urlsplit(url if "//" in url else f"//{url}").hostname for url in urllib.request.getproxies().values()}


class _Redirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(
        self, req: urllib.request.Request, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        scheme = urlsplit(newurl).scheme
        if scheme not in ("http", "https"):
            raise RedirectError(f"it redirects to {scheme or 'nothing'}:, expected https:")
        if req.type == "https" and scheme != "https":
            raise RedirectError("it redirects from https: to http:")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


class _Http(urllib.request.HTTPHandler):
    def __init__(self, way: _Way) -> None:
        super().__init__()
        self._way = way

    def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        way = self._way

        class Connection(http.client.HTTPConnection):
            def connect(self) -> None:
                super().connect()
                way.check(self)

        return self.do_open(Connection, req)


class _Https(urllib.request.HTTPSHandler):
    def __init__(self, way: _Way) -> None:
        super().__init__()
        self._way = way

    def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        way = self._way

        class Connection(http.client.HTTPSConnection):
            def connect(self) -> None:
                super().connect()
                way.check(self)

        return self.do_open(Connection, req)
