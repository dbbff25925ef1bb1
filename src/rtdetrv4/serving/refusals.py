"""What a server answers when it does not answer with detections."""

from __future__ import annotations

import math
from typing import Any

CLIENT_GONE = 499
"""The status of requests that nobody waited for; only the counters see it."""


class RefusedError(Exception):
    """A request that is not served, in the words that the client gets.

    Nothing in it names a file of the server.

    Args:
        status: the HTTP status.
        code: the kind of refusal, for programs.
        what: what is wrong, for people, and how to fix it.
        got: what the client sent; None if that says nothing.
        expected: what would have been taken; None if `what` says it.
        retry_after_s: seconds after which it is worth trying again; None if it is not.
        closes: whether the connection cannot be used any more.
    """

    def __init__(
        self,
        status: int,
        code: str,
        what: str,
        *,
        got: str | int | None = None,
        expected: str | int | None = None,
        retry_after_s: float | None = None,
        closes: bool = False,
    ) -> None:
        super().__init__(what)
        self.status = status
        self.code = code
        self.what = what
        self.got = got
        self.expected = expected
        self.retry_after_s = retry_after_s
        self.closes = closes

    @property
    def content(self) -> dict[str, Any]:
        """The body of the answer."""
        return {"error": {"code": self.code, "what": self.what, "got": self.got, "expected": self.expected}}

    @property
    def headers(self) -> dict[str, str]:
        """Headers of the answer."""
        headers = {} if self.retry_after_s is None else {"retry-after": str(max(math.ceil(self.retry_after_s), 1))}
        if self.status == 401:
            headers["www-authenticate"] = "Bearer"
        if self.closes:
            headers["connection"] = "close"
        return headers


def busy(what: str, retry_after_s: float = 1.0) -> RefusedError:
    """There is no room now."""
    return RefusedError(429, "busy", what, retry_after_s=retry_after_s)


def late(timeout: str = "the time limit") -> RefusedError:
    """A request that could not be answered in time."""
    return RefusedError(504, "late", f"the answer would have come after {timeout}; the server is busy, try again later")


def closing() -> RefusedError:
    """The server stops."""
    return RefusedError(503, "closing", "the server is stopping; try again later", retry_after_s=5, closes=True)
