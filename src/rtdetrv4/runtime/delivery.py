"""Sends results to others while they come: a webhook, or MQTT. Detection never waits for them."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from typing import Any, Literal

from rtdetrv4.errors import ConfigError, require
from rtdetrv4.runtime.urls import address_of, host_of, reason_of, redacted, request_headers, without_credentials

logger: logging.Logger = logging.getLogger(__name__)

BATCH = 16
"""Results in a request, at most."""
GATHER_S = 1.0
"""How long the first result of a request waits for others."""
TIMEOUT_S = 5.0
MAX_WAITING = 1000
"""Results that wait while nobody answers; of more, the oldest are lost."""
FIRST_DELAY_S = 1.0
MAX_DELAY_S = 30.0
CLOSE_S = 5.0
"""How long results are still sent after the last one."""
RETRIED = frozenset({408, 425, 429})
"""Refusals that a later try may not meet; and so may any answer from 500."""


class Webhook:
    """Sends results to a URL in a thread: POST requests with {"results": [...]}, several results in each.

    A request that fails is sent again, after delays that double up to half a minute, until it succeeds or is refused
    (any answer between 300 and 499, except "later"). A receiver may get a result twice if its answer is lost.

    Args:
        url: http(s); a user and password in it are sent by HTTP's Basic scheme.

    Attributes:
        num_delivered: results that were taken.
        num_lost: results that were refused, or that the queue or the end left no time for.

    Raises:
        ConfigError: the URL is not http(s).
        SourceError: the URL is none.
    """

    def __init__(self, url: str) -> None:
        if not url.startswith(("http://", "https://")):
            raise ConfigError(f'webhook: got "{redacted(url)}", expected a URL that begins with http:// or https://.')
        self._url, credentials = without_credentials(url)
        self._headers = {"Content-Type": "application/json", **request_headers(credentials)}
        self._name = host_of(url)
        self.num_delivered: int = 0
        self.num_lost: int = 0
        self._waiting: deque[str] = deque()
        self._changed = threading.Condition()
        self._ends_at: float | None = None
        self._is_failing = False
        self._thread = threading.Thread(target=self._run, name="rtdetrv4-webhook", daemon=True)
        self._thread.start()

    def __str__(self) -> str:
        return f"{self._name}: {self.num_delivered} results delivered, {self.num_lost} lost"

    def add(self, result: str) -> None:
        """Send a result soon.

        Args:
            result: a JSON object.
        """
        with self._changed:
            if len(self._waiting) == MAX_WAITING:
                self._waiting.popleft()
                self.num_lost += 1
            self._waiting.append(result)
            self._changed.notify_all()

    def close(self) -> None:
        """Send what waits, for a few seconds at most."""
        with self._changed:
            self._ends_at = time.monotonic() + CLOSE_S
            self._changed.notify_all()
        self._thread.join(CLOSE_S + 2 * TIMEOUT_S)  # an answer that drips is not waited for

    def _run(self) -> None:
        delay = FIRST_DELAY_S
        batch: list[str] = []
        while True:
            with self._changed:
                if not batch:
                    self._changed.wait_for(lambda: self._waiting or self._ends_at is not None)
                    self._changed.wait_for(lambda: len(self._waiting) >= BATCH or self._ends_at is not None, GATHER_S)
                    batch = [self._waiting.popleft() for _ in range(min(BATCH, len(self._waiting)))]
                if not batch:
                    return
                if self._ends_at is not None and time.monotonic() > self._ends_at:
                    self.num_lost += len(batch) + len(self._waiting)
                    return
            outcome, reason = self._post(batch)
            if outcome == "failed":
                if not self._is_failing:
                    logger.warning("The webhook %s does not answer (%s); trying again", self._name, reason)
                self._is_failing = True
                with self._changed:
                    if self._ends_at is None:
                        self._changed.wait_for(lambda: self._ends_at is not None, delay)
                    else:
                        self._changed.wait(min(delay, max(0.0, self._ends_at - time.monotonic())))
                delay = min(2 * delay, MAX_DELAY_S)
                continue
            with self._changed:
                if outcome == "delivered":
                    self.num_delivered += len(batch)
                else:
                    self.num_lost += len(batch)
            if outcome == "refused":
                logger.warning("The webhook %s refuses results (%s)", self._name, reason)
            elif self._is_failing:
                logger.info("The webhook %s answers again", self._name)
                self._is_failing = False
            batch, delay = [], FIRST_DELAY_S

    def _post(self, batch: list[str]) -> tuple[Literal["delivered", "failed", "refused"], str]:
        import http.client
        import urllib.error
        import urllib.request

        class NoRedirect(urllib.request.HTTPRedirectHandler):
            def redirect_request(self, *args: Any, **named: Any) -> None:
                """Refused: a POST would become a GET without its content."""

        body = f'{{"results": [{", ".join(batch)}]}}'.encode("utf-8", "backslashreplace")
        request = urllib.request.Request(self._url, body, self._headers, method="POST")  # noqa: S310 - the user's own
        try:
            with urllib.request.build_opener(NoRedirect).open(request, timeout=TIMEOUT_S):
                return "delivered", ""
        except urllib.error.HTTPError as error:
            error.close()
            is_later = error.code in RETRIED or error.code >= 500
            return ("failed" if is_later else "refused"), reason_of(error)
        except (OSError, ValueError, http.client.HTTPException) as error:
            return "failed", reason_of(error)


class Mqtt:
    """Publishes results to an MQTT broker, at least once each (QoS 1), by paho-mqtt, which has a thread of its own.

    Args:
        url: mqtt://user:password@host:port/topic, or mqtts:// with TLS; the topic may have several levels.

    Attributes:
        num_delivered: results that the broker took.

    Raises:
        ConfigError: the URL has no topic, or is of another kind.
        SourceError: the URL is none.
        MissingDependencyError: paho-mqtt is not installed.
    """

    def __init__(self, url: str) -> None:
        address, credentials = without_credentials(url)
        where = address_of(address)
        self._topic = address.partition("://")[2].partition("/")[2]
        if (
            not url.startswith(("mqtt://", "mqtts://"))
            or where is None
            or not self._topic
            or set(self._topic) & {*"#+"}
        ):
            raise ConfigError(f'mqtt: got "{redacted(url)}", expected mqtt://host/topic or mqtts://host/topic.')
        client = require("paho.mqtt.client", "mqtt")
        self._name = host_of(url)
        self.num_delivered: int = 0
        self._num_added = 0
        self._changed = threading.Condition()
        self._is_failing = False
        self._is_closing = False
        self._client = client.Client(require("paho.mqtt.enums", "mqtt").CallbackAPIVersion.VERSION2)
        if credentials is not None:
            self._client.username_pw_set(*credentials)
        if url.startswith("mqtts://"):
            self._client.tls_set()
        self._client.max_queued_messages_set(MAX_WAITING)
        self._client.reconnect_delay_set(1, round(MAX_DELAY_S))
        self._client.connect_timeout = TIMEOUT_S
        self._client.on_publish = self._note_published
        self._client.on_connect = self._note_connected
        self._client.on_connect_fail = lambda *_: self._note_failure("no connection")
        self._client.on_disconnect = lambda _client, _data, _flags, reason, _more: self._note_failure(str(reason))
        self._client.connect_async(*where)
        self._client.loop_start()

    @property
    def num_lost(self) -> int:
        """Results that the broker has not taken."""
        return self._num_added - self.num_delivered

    def __str__(self) -> str:
        return f"{self._name}: {self.num_delivered} results delivered, {self.num_lost} lost"

    def add(self, result: str) -> None:
        """Publish a result soon.

        Args:
            result: a JSON object.
        """
        with self._changed:
            self._num_added += 1
        self._client.publish(self._topic, result.encode("utf-8", "backslashreplace"), qos=1)

    def close(self) -> None:
        """Publish what waits, for a few seconds at most."""
        with self._changed:
            self._changed.wait_for(lambda: self.num_delivered == self._num_added, CLOSE_S)
            self._is_closing = True
        self._client.disconnect()
        self._client.loop_stop()

    def _note_published(self, *_: Any) -> None:
        with self._changed:
            self.num_delivered += 1
            self._changed.notify_all()

    def _note_connected(self, _client: Any, _data: Any, _flags: Any, reason: Any, _more: Any) -> None:
        if reason.is_failure:
            self._note_failure(str(reason))
            return
        if self._is_failing:
            logger.info("The broker %s answers again", self._name)
        self._is_failing = False

    def _note_failure(self, reason: str) -> None:
        if not self._is_failing and not self._is_closing:
            logger.warning("The broker %s cannot be reached (%s); trying again", self._name, reason)
        self._is_failing = True
