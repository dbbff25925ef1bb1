"""Results that are sent on: what arrives, what is lost, and that nobody waits for a receiver."""

from __future__ import annotations

import contextlib
import http.server
import json
import logging
import socketserver
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from rtdetrv4.errors import ConfigError, MissingDependencyError, SourceError
from rtdetrv4.runtime import delivery
from rtdetrv4.runtime.delivery import Mqtt, Webhook


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits long."""
    for name, value in (("GATHER_S", 0.02), ("FIRST_DELAY_S", 0.02), ("MAX_DELAY_S", 1.0), ("CLOSE_S", 5.0)):
        monkeypatch.setattr(delivery, name, value)


class Receiver:
    """What came, and how it is answered: status codes one after the other, then 200."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, dict[str, str], list]] = []
        self.answers: list[int] = []
        self.port = 0
        self.may_answer = threading.Event()
        self.may_answer.set()

    @property
    def results(self) -> list[int]:
        return [result["n"] for _, _, results in self.requests for result in results]


@contextlib.contextmanager
def receiving() -> Iterator[Receiver]:
    receiver = Receiver()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            receiver.may_answer.wait(20)
            status = receiver.answers.pop(0) if receiver.answers else 200
            if status < 300:
                receiver.requests.append((self.path, dict(self.headers), body["results"]))
            with contextlib.suppress(OSError):
                self.send_response(status)
                if status == 302:
                    self.send_header("Location", "/elsewhere")
                self.end_headers()

        def log_message(self, *_: object) -> None: ...

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    receiver.port = server.server_port
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield receiver
    finally:
        receiver.may_answer.set()
        server.shutdown()
        thread.join()
        server.server_close()


def result(number: int) -> str:
    return json.dumps({"n": number, "name": "ä\udce9"}, ensure_ascii=False)


def sender_threads() -> list[str]:
    return [each.name for each in threading.enumerate() if each.name.startswith(("rtdetrv4", "paho"))]


def wait_until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_results_arrive_in_order_and_together() -> None:
    with receiving() as receiver:
        webhook = Webhook(f"http://admin:ge%40heim@127.0.0.1:{receiver.port}/in?token=t")
        for number in range(40):
            webhook.add(result(number))
        webhook.close()
        assert receiver.results == list(range(40))
        path, headers, _ = receiver.requests[0]
        assert path == "/in?token=t"
        assert headers["Content-Type"] == "application/json"
        assert headers["Authorization"] == "Basic YWRtaW46Z2VAaGVpbQ=="
        assert max(len(results) for _, _, results in receiver.requests) == delivery.BATCH
        assert str(webhook) == f"http://127.0.0.1:{receiver.port}: 40 results delivered, 0 lost"
    assert sender_threads() == []


def test_what_fails_is_sent_again(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with receiving() as receiver:
        receiver.answers = [500, 503, 429]
        webhook = Webhook(f"http://admin:geheim@127.0.0.1:{receiver.port}/secret")
        webhook.add(result(1))
        wait_until(lambda: webhook.num_delivered == 1)
        webhook.close()
        assert receiver.results == [1]
    messages = [record.getMessage() for record in caplog.records]
    name = f"http://127.0.0.1:{receiver.port}"
    assert messages == [
        f"The webhook {name} does not answer (HTTP Error 500: Internal Server Error); trying again",
        f"The webhook {name} answers again",
    ], "one line an outage"
    assert "geheim" not in caplog.text
    assert "secret" not in caplog.text


@pytest.mark.parametrize("status", [404, 302])
def test_what_is_refused_is_lost(status: int, caplog: pytest.LogCaptureFixture) -> None:
    with receiving() as receiver:
        receiver.answers = [status]
        webhook = Webhook(f"http://127.0.0.1:{receiver.port}/in")
        webhook.add(result(1))
        wait_until(lambda: webhook.num_lost == 1)
        webhook.add(result(2))
        webhook.close()
        assert receiver.results == [2]
        assert (webhook.num_delivered, webhook.num_lost) == (1, 1)
    assert f"refuses results (HTTP Error {status}" in caplog.text


def test_nobody_waits_for_a_receiver_that_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delivery, "MAX_WAITING", 20)
    monkeypatch.setattr(delivery, "CLOSE_S", 0.1)
    monkeypatch.setattr(delivery, "TIMEOUT_S", 0.2)
    with receiving() as receiver:
        receiver.may_answer.clear()
        webhook = Webhook(f"http://127.0.0.1:{receiver.port}/in")
        start = time.monotonic()
        for number in range(100):
            webhook.add(result(number))
        webhook.close()
        assert time.monotonic() - start < 10
        assert (webhook.num_delivered, webhook.num_lost) == (0, 100)
    assert sender_threads() == []


def test_nobody_is_there(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delivery, "CLOSE_S", 0.1)
    webhook = Webhook("http://admin:geheim@127.0.0.1:1/secret")
    webhook.add(result(1))
    webhook.close()
    assert webhook.num_lost == 1
    assert "The webhook http://127.0.0.1:1 does not answer (Connection refused); trying again" in caplog.text


def test_urls_that_are_no_webhooks() -> None:
    for url in ("cam/in", "ftp://admin:geheim@cam/in"):
        with pytest.raises(ConfigError, match="expected a URL that begins with http://") as error:
            Webhook(url)
        assert "geheim" not in str(error.value)
    with pytest.raises(SourceError, match="is no URL") as error:
        Webhook("http://admin:ge#heim@cam/in")
    assert "heim" not in str(error.value)
    assert sender_threads() == []


class Broker:
    """An MQTT broker as small as can be: it takes what is published with QoS 1."""

    def __init__(self) -> None:
        self.connects: list[bytes] = []
        self.messages: list[tuple[str, dict]] = []
        self.port = 0


@contextlib.contextmanager
def broker() -> Iterator[Broker]:
    state = Broker()

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            while (head := self.rfile.read(1)) != b"":
                size, shift = 0, 0
                while True:  # the length, seven bits at a time
                    (byte,) = self.rfile.read(1)
                    size |= (byte & 127) << shift
                    shift += 7
                    if byte < 128:
                        break
                body = self.rfile.read(size)
                kind = head[0] >> 4
                if kind == 1:
                    state.connects.append(body)
                    self.wfile.write(b"\x20\x02\x00\x00")
                elif kind == 3:
                    (length,) = struct.unpack(">H", body[:2])
                    topic, number, payload = body[2 : 2 + length], body[2 + length : 4 + length], body[4 + length :]
                    state.messages.append((topic.decode(), json.loads(payload)))
                    self.wfile.write(b"\x40\x02" + number)
                elif kind == 14:
                    return

    server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    state.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_mqtt() -> None:
    with broker() as state:
        mqtt = Mqtt(f"mqtt://admin:geheim@127.0.0.1:{state.port}/site/yard")
        for number in range(10):
            mqtt.add(result(number))
        mqtt.close()
        assert [(topic, message["n"]) for topic, message in state.messages] == [("site/yard", n) for n in range(10)]
        assert b"admin" in state.connects[0]
        assert b"geheim" in state.connects[0]
        assert str(mqtt) == f"mqtt://127.0.0.1:{state.port}: 10 results delivered, 0 lost"
    assert sender_threads() == []


def test_a_broker_that_is_not_there(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delivery, "CLOSE_S", 0.3)
    mqtt = Mqtt("mqtt://admin:geheim@127.0.0.1:1/yard")
    mqtt.add(result(1))
    mqtt.close()
    assert (mqtt.num_delivered, mqtt.num_lost) == (0, 1)
    assert caplog.text.count("The broker mqtt://127.0.0.1:1 cannot be reached") == 1
    assert "geheim" not in caplog.text
    assert sender_threads() == []


@pytest.mark.parametrize(
    "url", ["http://host/topic", "mqtt://host", "mqtt://host/", "mqtt://host/a/#", "mqtt:///topic"]
)
def test_urls_of_no_broker(url: str) -> None:
    with pytest.raises(ConfigError, match="expected mqtt://host/topic or mqtts://host/topic"):
        Mqtt(url)


def test_without_paho_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "paho.mqtt.client", None)
    with pytest.raises(MissingDependencyError, match=r'paho is not installed; .* pip install "rtdetrv4\[mqtt\]"'):
        Mqtt("mqtt://host/topic")
