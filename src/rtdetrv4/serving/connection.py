"""Connections that end if the other side does not come to the point.

uvicorn closes connections that are idle between requests. It waits for ever for the head of a request, for the rest of
a body that nobody wants, and for a client that does not read its answer.
"""

from __future__ import annotations

import asyncio
import json
import sys
from http import HTTPStatus
from typing import Any, Literal

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from rtdetrv4.serving.limits import Limits
from rtdetrv4.serving.refusals import RefusedError

LINGER_S = 5.0
"""How long a client may go on with a body after it has been refused, so that it can read why."""

_State = Literal["head", "idle", "request", "rest"]
"""The head of a request is awaited; nothing is; a request is being answered; it has been, but its body still comes."""


class Connection(H11Protocol):
    """A connection of uvicorn, with deadlines.

    Args:
        limits: how long to wait for what, and how many connections there may be.
        arguments: those that uvicorn gives.
    """

    def __init__(self, *, limits: Limits, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._limits = limits
        self._state: _State = "head"
        self.since: float = self.loop.time()
        """When it began to wait for what it waits for, by the clock of its loop."""
        self._timer: asyncio.TimerHandle | None = None
        self._send_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Take a new connection, if there is room for it."""
        super().connection_made(transport)
        self._set_timer(self._limits.head_s)
        if len(self.connections) > self._limits.connections and not self._make_room():
            self._end(RefusedError(503, "too_many_connections", "there are too many connections", retry_after_s=1))

    def data_received(self, data: bytes) -> None:
        """Read what came."""
        super().data_received(data)
        self._look()

    def on_response_complete(self) -> None:
        """Go on after an answer."""
        super().on_response_complete()
        if self.transport.get_write_buffer_size() and self._send_timer is None:
            self._send_timer = self.loop.call_later(self._limits.send_s, self._give_up_sending)
        self._look()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop all timers."""
        for timer in (self._timer, self._send_timer):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """Answer what is no request; called where h11 refuses it."""
        error = sys.exc_info()[1]
        status = getattr(error, "error_status_hint", 400)
        if status == HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE:
            expected = f"at most {self._limits.head_bytes} bytes"
            what = "the first line and the headers are too large"
            self._end(RefusedError(status, "head_too_large", what, expected=expected))
        else:
            self._end(RefusedError(status, "malformed_request", "the request is not one of HTTP"))

    @property
    def is_waiting(self) -> bool:
        """Whether no request is being answered on this connection, so that it may be closed."""
        return self._state in ("head", "idle")

    def _look(self) -> None:
        """See what the connection waits for, and begin to wait if that is new: what trickles gains no time."""
        state: _State
        if self.cycle is not None and not self.cycle.response_complete:
            state = "request"
        elif self.conn.their_state is h11.SEND_BODY:
            state = "rest"
        elif self.cycle is None or self.conn.trailing_data[0]:
            state = "head"
        else:
            state = "idle"
        if state == self._state:
            return
        self._state = state
        self.since = self.loop.time()
        # What is idle is closed by uvicorn, and a request that is being answered by the application.
        seconds = {"head": self._limits.head_s, "rest": LINGER_S}.get(state)
        self._set_timer(seconds)

    def _set_timer(self, seconds: float | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None if seconds is None else self.loop.call_later(seconds, self._expire)

    def _expire(self) -> None:
        if self.transport.is_closing():
            return
        if self._state == "rest":
            self.transport.abort()
        elif self.conn.trailing_data[0]:
            expected = f"all of it in {self._limits.head_s:g} s"
            self._end(RefusedError(408, "slow_head", "the request did not come in time", expected=expected))
        else:
            self.transport.close()

    def _give_up_sending(self) -> None:
        self._send_timer = None
        if self.transport.get_write_buffer_size():
            self.transport.abort()

    def _make_room(self) -> bool:
        """Close the connection that has waited longest for a request."""
        waiting = [
            other
            for other in self.connections
            if isinstance(other, Connection) and other is not self and other.is_waiting
        ]
        if waiting:
            min(waiting, key=lambda other: other.since).transport.close()
        return bool(waiting)

    def _end(self, error: RefusedError) -> None:
        """Answer past h11, and close; if an answer has begun, only that."""
        if self.cycle is not None and self.cycle.response_started and not self.cycle.response_complete:
            self.transport.abort()
            return
        body = json.dumps(error.content).encode()
        headers = {
            "content-type": "application/json",
            "content-length": str(len(body)),
            "x-content-type-options": "nosniff",
            "cache-control": "no-store",
            **error.headers,
            "connection": "close",
        }
        lines = [f"HTTP/1.1 {error.status} {HTTPStatus(error.status).phrase}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        self.transport.write("\r\n".join([*lines, "", ""]).encode() + body)
        self.transport.close()
