"""URLs whose passwords nobody sees: how they are written, and how they are asked."""

from __future__ import annotations

import re
import time
from typing import Any, NamedTuple
from urllib.parse import SplitResult, unquote, urlsplit

from rtdetrv4.errors import SourceError

MAX_DOWNLOAD_BYTES = 64 * 1024 * 1024
DOWNLOAD_TIMEOUT_S = 15
"""Until the next bytes."""
MAX_DOWNLOAD_S = 120
"""For all of them."""
HIDDEN_TEXT = "***"
STREAM_TYPES = ("video/", "multipart/x-mixed-replace", "application/vnd.apple.mpegurl", "application/x-mpegurl")
"""How the content types of videos and streams begin."""
DEFAULT_PORTS = {"http": 80, "https": 443, "rtsp": 554, "rtsps": 322, "rtmp": 1935, "mqtt": 1883, "mqtts": 8883}


class Credentials(NamedTuple):
    """Who asks."""

    user: str
    password: str


def is_url(name: str) -> bool:
    """Whether a name is a URL, and not a file."""
    return "://" in name


def redacted(url: str) -> str:
    """A URL as it may be logged and stored: no user, no password, and of the query only short numbers.

    Cameras take passwords and tokens as values of a query, under any name; what tells their channels apart, such as
    ``channel=1``, is a short number. A password with a character that ends the host, such as ``#``, is hidden too.

    >>> redacted("rtsp://admin:secret@10.0.0.5:554/cam?channel=1&token=abc")
    'rtsp://***@10.0.0.5:554/cam?channel=1&token=***'
    """
    scheme, separator, rest = url.partition("://")
    if not separator:
        return url
    host = re.split(r"[/?#]", rest, maxsplit=1)[0]
    if ":" in host and "@" in rest:  # the password may contain anything, if whoever wrote it escaped nothing
        rest = f"{HIDDEN_TEXT}@{rest[rest.rindex('@') + 1 :]}"
    elif "@" in host:
        rest = f"{HIDDEN_TEXT}@{rest[host.rindex('@') + 1 :]}"
    elif not re.fullmatch(r"(\[[^\]]*\]|[^:]*)(:\d*)?", host):  # no port, so it may be a password
        return f"{scheme}://{HIDDEN_TEXT}"
    address, mark, query = rest.partition("#")[0].partition("?")
    return f"{scheme}://{address}{mark}{'&'.join(map(_redacted_value, query.split('&')))}"


def _redacted_value(pair: str) -> str:
    name, separator, value = pair.partition("=")
    if not separator:  # the value may have no name
        return pair if not pair or re.fullmatch(r"\d{1,3}", pair) else HIDDEN_TEXT
    return pair if re.fullmatch(r"\d{0,3}", value) else f"{name}={HIDDEN_TEXT}"


def host_of(url: str) -> str:
    """Scheme and host of a URL, where its path is as secret as a password."""
    parts = _split(url)
    return f"{parts.scheme}://{_host(parts)}"


def address_of(url: str) -> tuple[str, int] | None:
    """The host and port behind a URL, or None if it does not say."""
    parts = _split(url)
    port = parts.port or DEFAULT_PORTS.get(parts.scheme)
    return (parts.hostname, port) if parts.hostname and port else None


def without_credentials(url: str) -> tuple[str, Credentials | None]:
    """Take the user and password out of a URL.

    Raises:
        SourceError: the URL is none.
    """
    parts = _split(url)
    if parts.username is None:
        return url, None
    credentials = Credentials(unquote(parts.username), unquote(parts.password or ""))
    return parts._replace(netloc=_host(parts)).geturl(), credentials


def _split(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        _ = parts.port  # parsed now
    except ValueError:
        raise SourceError(
            f"{redacted(url)} is no URL; in a user name or password, write characters such as @ : / # ? as %40 %3A %2F "
            "%23 %3F"
        ) from None
    return parts


def _host(parts: SplitResult) -> str:
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else (parts.hostname or "")
    return host if parts.port is None else f"{host}:{parts.port}"


def request_headers(credentials: Credentials | None) -> dict[str, str]:
    """The header that tells an HTTP server who asks."""
    if credentials is None:
        return {}
    import base64

    token = base64.b64encode(f"{credentials.user}:{credentials.password}".encode()).decode()
    return {"Authorization": f"Basic {token}"}


def reason_of(error: Exception) -> str:
    """Why a request failed, in words that hold no part of its URL."""
    import http.client
    import urllib.error

    if isinstance(error, urllib.error.HTTPError):
        return f"HTTP Error {error.code}: {http.client.responses.get(error.code, 'unknown')}"
    if isinstance(error, urllib.error.URLError) and isinstance(error.reason, OSError):
        error = error.reason
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return type(error).__name__


def download(url: str) -> bytes | None:
    """Read a file by http(s), at most 64 MiB.

    Whoever gives the URL may name a camera at home. Who answers may not: what redirects from a public address must lead
    to another one, and what is encrypted must stay so.

    Returns:
        Its content, or None if it is a video or a stream, or may be one.

    Raises:
        SourceError: it cannot be had, or is too large.
    """
    import http.client  # only where it is needed: `predict` is to start fast
    import urllib.error
    import urllib.request

    from rtdetrv4.runtime import redirects

    address, credentials = without_credentials(url)
    try:
        request = urllib.request.Request(address)  # noqa: S310 - its opener knows http and https only
        for name, value in request_headers(credentials).items():
            request.add_unredirected_header(name, value)  # not for another host
        with redirects.safe_opener().open(request, timeout=DOWNLOAD_TIMEOUT_S) as response:
            if (response.headers.get("Content-Type") or "").lower().startswith(STREAM_TYPES):
                return None
            data = _body(response)
    except redirects.RedirectError as error:
        raise SourceError(f"{redacted(url)} cannot be downloaded: {error}") from None
    except (OSError, ValueError, http.client.HTTPException) as error:
        if isinstance(error, urllib.error.HTTPError) and error.code == 401 and credentials is not None:
            return None  # cameras may want the password in another form, which FFmpeg knows
        raise SourceError(f"{redacted(url)} cannot be downloaded: {reason_of(error)}") from None
    if len(data) > MAX_DOWNLOAD_BYTES:
        raise SourceError(
            f"{redacted(url)} is larger than {MAX_DOWNLOAD_BYTES // 1024**2} MiB; download it and give its path"
        )
    return data


def _body(response: Any) -> bytes:
    """The content of an answer, and one byte more than there may be where it is too large.

    Raises:
        TimeoutError: its bytes come one by one.
    """
    data, end = bytearray(), time.monotonic() + MAX_DOWNLOAD_S
    while len(data) <= MAX_DOWNLOAD_BYTES and (chunk := response.read1(MAX_DOWNLOAD_BYTES + 1 - len(data))):
        data += chunk
        if time.monotonic() > end:
            raise TimeoutError
    return bytes(data)
