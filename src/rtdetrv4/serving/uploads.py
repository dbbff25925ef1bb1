"""The body of a request, read within limits: images, and names of images elsewhere."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import NamedTuple

from fastapi import Request
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from rtdetrv4.serving.budget import Budget
from rtdetrv4.serving.limits import Limits
from rtdetrv4.serving.refusals import RefusedError, busy

FORM = "multipart/form-data"
RAW = "application/octet-stream"
URLENCODED = "application/x-www-form-urlencoded"
"""What curl calls a body whose type it was not told."""
TYPES = f"{FORM}, an image such as image/jpeg, or {RAW}"
IMAGE_FIELD, URL_FIELD = "image", "url"
MAX_FIELD = 4096
"""Bytes of a field that is no image, and of the headers of a part."""


class Url(NamedTuple):
    """An image that lies elsewhere."""

    url: str


@asynccontextmanager
async def received(request: Request, limits: Limits, held: Budget) -> AsyncIterator[list[bytes | Url]]:
    """Read the body of a request, and hold it for as long as it is needed.

    Args:
        request: of which nothing was read yet.
        limits: how large the body may be, and how long it may take.
        held: the bytes that may be in memory, for all requests.

    Raises:
        RefusedError: it is too large, too slow, or of another kind.
    """
    body = _body_for(request, limits)
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > limits.request_bytes:
        raise _too_large(limits, int(declared))
    count = 0

    async def read() -> None:
        nonlocal count
        async for chunk in request.stream():
            if count + len(chunk) > limits.request_bytes:
                raise _too_large(limits, None)
            if not held.take(len(chunk)):
                raise busy("too many large requests are being received")
            count += len(chunk)
            body.write(chunk)

    try:
        try:
            await asyncio.wait_for(read(), limits.body_s)
        except asyncio.TimeoutError:
            raise RefusedError(
                408,
                "slow_body",
                "the body did not come in time",
                expected=f"all of it in {limits.body_s:g} s",
                closes=True,
            ) from None
        images = body.end()
        if not images:
            raise RefusedError(
                422, "no_image", "the request has no image", expected=f"the field {IMAGE_FIELD}, or a body"
            )
        yield images
    finally:
        held.give(count)


def _body_for(request: Request, limits: Limits) -> _Raw | _Form:
    """What understands the body.

    Raises:
        RefusedError: nothing does.
    """
    if (encoding := request.headers.get("content-encoding", "identity")).lower() != "identity":
        raise RefusedError(
            415, "compressed_body", "content-encoding: bodies come as they are", got=encoding[:100], expected="identity"
        )
    given = request.headers.get("content-type")
    kind, options = parse_options_header(given)
    if kind == FORM.encode():
        if not (boundary := options.get(b"boundary")):
            raise _malformed("content-type: the boundary is missing")
        return _Form(boundary, limits)
    if kind == RAW.encode() or kind.startswith(b"image/"):
        return _Raw(limits)
    what = "content-type: bodies of this kind are not read"
    if kind in (b"", URLENCODED.encode()):
        what += '; of an image, say which it is: with curl, add -H "Content-Type: image/jpeg"'
    raise RefusedError(
        415,
        "unknown_type",
        what,
        got=(given or "none")[:100],
        expected=TYPES,
    )


class _Raw:
    """A body that is an image."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._data = bytearray()

    def write(self, chunk: bytes) -> None:
        self._data += chunk
        _check_image(self._data, self._limits)

    def end(self) -> list[bytes | Url]:
        return [bytes(self._data)] if self._data else []


class _Form:
    """A form with files, parsed while it comes."""

    def __init__(self, boundary: bytes, limits: Limits) -> None:
        self._limits = limits
        self._found: list[bytes | Url] = []
        self._header, self._value = bytearray(), bytearray()
        self._headers: dict[bytes, bytes] = {}
        self._name = ""
        self._data = bytearray()
        self._is_complete = False
        try:
            self._parser = MultipartParser(
                boundary,
                {
                    "on_part_begin": self._begin,
                    "on_header_field": self._add_header,
                    "on_header_value": self._add_value,
                    "on_header_end": self._end_header,
                    "on_headers_finished": self._end_headers,
                    "on_part_data": self._add_data,
                    "on_part_end": self._end_part,
                    "on_end": self._end,
                },
            )
        except FormParserError:
            raise _malformed("content-type: the boundary is too long") from None

    def write(self, chunk: bytes) -> None:
        try:
            self._parser.write(chunk)
        except FormParserError:
            raise _malformed("the form cannot be parsed") from None

    def end(self) -> list[bytes | Url]:
        if not self._is_complete:
            raise _malformed("the form ends early")
        return self._found

    def _begin(self) -> None:
        if len(self._found) == self._limits.images:
            raise RefusedError(
                413, "too_many_images", "the request has too many images", expected=f"at most {self._limits.images}"
            )
        self._headers = {}
        self._data = bytearray()

    def _add_header(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]
        self._check_header()

    def _add_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]
        self._check_header()

    def _check_header(self) -> None:
        if len(self._header) + len(self._value) > MAX_FIELD or len(self._headers) > 16:
            raise _malformed("a part of the form has too many headers")

    def _end_header(self) -> None:
        self._headers[bytes(self._header).lower()] = bytes(self._value)
        self._header, self._value = bytearray(), bytearray()

    def _end_headers(self) -> None:
        disposition = self._headers.get(b"content-disposition", b"").decode("latin-1")
        _, options = parse_options_header(disposition)
        self._name = options.get(b"name", b"").decode("utf-8", "replace")
        if self._name not in (IMAGE_FIELD, URL_FIELD):
            raise RefusedError(
                422,
                "unknown_field",
                "the form has a field that is not known",
                got=self._name[:100],
                expected=f"{IMAGE_FIELD}, once for each image; options are part of the URL",
            )

    def _add_data(self, data: bytes, start: int, end: int) -> None:
        self._data += data[start:end]
        if self._name == IMAGE_FIELD:
            _check_image(self._data, self._limits)
        elif len(self._data) > MAX_FIELD:
            raise RefusedError(422, "bad_url", "url: it is too long", expected=f"at most {MAX_FIELD} bytes")

    def _end_part(self) -> None:
        data = bytes(self._data)
        self._found.append(data if self._name == IMAGE_FIELD else Url(data.decode("utf-8", "replace").strip()))
        self._data = bytearray()

    def _end(self) -> None:
        self._is_complete = True


def _check_image(data: bytearray, limits: Limits) -> None:
    if len(data) > limits.image_bytes:
        raise RefusedError(
            413, "image_too_large", "an image is too large", expected=f"at most {limits.image_bytes} bytes"
        )


def _too_large(limits: Limits, got: int | None) -> RefusedError:
    return RefusedError(
        413,
        "request_too_large",
        "the body is too large",
        got=None if got is None else f"{got} bytes",
        expected=f"at most {limits.request_bytes} bytes",
    )


def _malformed(what: str) -> RefusedError:
    return RefusedError(400, "malformed_body", what, expected="a form as of RFC 7578")
