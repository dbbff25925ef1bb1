"""Who may ask, and what every answer says to browsers."""

from __future__ import annotations

import ipaddress
import re
import secrets
import socket
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rtdetrv4.errors import ConfigError
from rtdetrv4.serving.answers import answer
from rtdetrv4.serving.refusals import RefusedError

MIN_TOKEN = 16
OPEN_PATHS = ("/", "/health", "/ready")
"""What needs no token: the page, which holds nothing and asks for it, and what balancers ask."""
OPEN_FOLDER = "/page/"
LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]")
HOST = re.compile(r"[\w.-]+|\[[\da-f:]+]", re.IGNORECASE)
ORIGIN = re.compile(r"https?://[\w.-]+(:\d{1,5})?|https?://\[[\da-f:]+](:\d{1,5})?", re.IGNORECASE)

HEADERS = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(self), microphone=(), geolocation=(), display-capture=()",
    "cache-control": "no-store",
    "content-security-policy": "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
}
"""Of every answer; the page has its own policy of contents."""


class Access(NamedTuple):
    """Who may ask."""

    token: str | None = None
    """What requests must bear; None: nothing."""
    hosts: tuple[str, ...] | None = LOOPBACK_NAMES
    """Names that a browser may have for this server, if there is no token; None: any. Without it, a page of a stranger
    whose name suddenly means this machine could ask what it likes (DNS rebinding)."""
    origins: tuple[str, ...] = ()
    """Other pages that may ask, such as "https://example.com"."""
    allows_urls: bool = False
    """Whether images may be named by URL."""

    def checked(self) -> Access:
        """Return these rules.

        Raises:
            ConfigError: the token is too short, or an origin is none.
        """
        if self.token is not None and not re.fullmatch(rf"[!-~]{{{MIN_TOKEN},}}", self.token):
            raise ConfigError(
                f"token: expected at least {MIN_TOKEN} letters and digits, without space or line end; make one with: "
                'python -c "import secrets; print(secrets.token_urlsafe(32))"'
            )
        for origin in self.origins:
            if not ORIGIN.fullmatch(origin):
                raise ConfigError(f'allow-origin: got "{origin}", expected SCHEME://HOST or SCHEME://HOST:PORT.')
        return self._replace(origins=tuple(map(_as_sent, self.origins)))


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a server at this host.

    Raises:
        ConfigError: there is no such host.
    """
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        raise ConfigError(
            f'host: there is no "{host}"; expected an address of this machine, such as 0.0.0.0.'
        ) from None
    return all(ipaddress.ip_address(str(each[4][0]).partition("%")[0]).is_loopback for each in found)


class Door:
    """Lets requests in that may come, and gives every answer its headers.

    Args:
        app: what is behind it.
        access: who may ask.
        head_bytes: the largest head of a request. Its connection stops a head that never ends, but takes one that comes
            at once, whatever its size.
    """

    def __init__(self, app: ASGIApp, access: Access, head_bytes: int) -> None:
        self._app = app
        self._access = access
        self._head_bytes = head_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, in the terms of ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            self._check_size(scope)
            self._check(scope["path"], Headers(scope=scope))
        except RefusedError as error:
            await answer(error)(scope, receive, send)
            return
        if scope["method"] == "HEAD":  # uvicorn knows, and sends no body
            scope = {**scope, "method": "GET"}
        await self._app(scope, receive, send)

    def _check_size(self, scope: Scope) -> None:
        size = len(scope["raw_path"]) + len(scope["query_string"])
        size += sum(len(name) + len(value) for name, value in scope["headers"])
        if size > self._head_bytes:
            raise RefusedError(
                431,
                "head_too_large",
                "the first line and the headers are too large",
                got=f"{size} bytes",
                expected=f"at most {self._head_bytes} bytes",
            )

    def _check(self, path: str, headers: Headers) -> None:
        """Check a request by its head.

        Raises:
            RefusedError: it may not come in.
        """
        access = self._access
        host = headers.get("host", "").lower()
        if access.token is None and access.hosts is not None and _without_port(host) not in access.hosts:
            raise RefusedError(
                403,
                "wrong_host",
                "host: this server answers to other names; if it has this one, start it with --allow-host",
                got=host[:100],
                expected=" or ".join(access.hosts),
            )
        origin = headers.get("origin")
        if origin is not None and origin.lower() not in (f"http://{host}", f"https://{host}", *access.origins):
            raise RefusedError(
                403,
                "wrong_origin",
                "origin: this server answers no pages of other servers; if it should, start it with --allow-origin",
                got=origin[:100],
            )
        if access.token is None or path in OPEN_PATHS or path.startswith(OPEN_FOLDER):
            return
        scheme, _, given = headers.get("authorization", "").partition(" ")
        # As bytes, because strings that are compared in constant time must be ASCII.
        is_right = secrets.compare_digest(given.strip().encode(), access.token.encode())
        if scheme.lower() != "bearer" or not is_right:
            raise RefusedError(
                401, "no_token", "authorization: the token is missing or wrong", expected="Authorization: Bearer TOKEN"
            )


class SafeHeaders:
    """Gives every answer the headers that keep browsers from doing what nobody wants.

    Args:
        app: what answers.
        is_shared: whether pages of other origins may read answers.
    """

    def __init__(self, app: ASGIApp, *, is_shared: bool) -> None:
        self._app = app
        self._headers = HEADERS | ({"cross-origin-resource-policy": "cross-origin"} if is_shared else {})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, in the terms of ASGI."""

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in self._headers.items():
                    headers.setdefault(name, value)
            await send(message)

        await self._app(scope, receive, send_with_headers)


def host_names(host: str, extra: Sequence[str]) -> tuple[str, ...]:
    """The names that a browser on this machine may have for a server at `host`.

    Raises:
        ConfigError: one of `extra` is no name.
    """
    for name in extra:
        if not HOST.fullmatch(name):
            raise ConfigError(f'allow-host: got "{name}", expected a name without scheme and port, as camera.local.')
    own: Iterable[str] = (f"[{host}]" if ":" in host else host, *LOOPBACK_NAMES, *extra)
    return tuple(dict.fromkeys(name.lower() for name in own))


def _as_sent(origin: str) -> str:
    """An origin as browsers write it: in lower case, without the usual port."""
    origin = origin.lower()
    scheme, _, _ = origin.partition(":")
    return origin.removesuffix({"http": ":80", "https": ":443"}[scheme])


def _without_port(host: str) -> str:
    return re.sub(r":\d*$", "", host)
