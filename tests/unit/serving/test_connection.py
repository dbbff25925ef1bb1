"""Clients that do not come to the point, or mean harm, byte by byte."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import socket
import time
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image

from rtdetrv4.errors import ConfigError
from rtdetrv4.serving import Limits, Network, Service
from rtdetrv4.serving.server import Place, check_files, open_socket
from running_server import PATIENCE_S, Client, read_all, running

HEAD = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\n"
GET = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
PATIENT_S = 1.0
SLOW_S = 0.4


def png() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((20, 30, 3), dtype=np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


PICTURE = png()


@pytest.fixture(scope="module")
def client(network: Network) -> Iterator[Client]:
    limits = Limits(
        head_s=SLOW_S, body_s=SLOW_S, idle_s=1, send_s=SLOW_S, connections=8, head_bytes=4096, request_bytes=500_000,
        image_bytes=400_000,
    )  # fmt: skip
    with running(Service({"color": network}, limits=limits)) as client:
        yield client


@pytest.fixture(autouse=True)
def _is_well(client: Client, caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Whatever a test does to the server, others are served afterwards, nothing stays open, and nothing is logged."""
    yield
    assert client.ask("POST", "/predict", PICTURE, {"Content-Type": "image/png"}).status == 200
    deadline = time.monotonic() + PATIENCE_S
    while client.server.server_state.connections or client.server.server_state.tasks:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


def first_status(received: bytes) -> int:
    return int(received.split(b" ", 2)[1])


def problem(received: bytes) -> tuple[int, str]:
    """Status and code of the last answer, of which nothing but JSON remains."""
    head, _, body = received.rpartition(b"\r\n\r\n")
    last = head[head.rindex(b"HTTP/1.1 ") :]
    assert b"content-type: application/json" in last
    return int(last.split(b" ", 2)[1]), json.loads(body)["error"]["code"]


def test_a_connection_on_which_nothing_comes_is_closed(client: Client) -> None:
    start = time.monotonic()
    assert client.raw() == b""
    assert SLOW_S * 0.9 < time.monotonic() - start < PATIENCE_S / 2


def test_half_a_head_is_not_waited_for(client: Client) -> None:
    assert problem(client.raw(b"POST /predict HTTP/1.1\r\nHost: loc")) == (408, "slow_head")


def test_a_head_that_trickles_gains_no_time(client: Client) -> None:
    start = time.monotonic()
    with client.connected() as connection, contextlib.suppress(OSError):
        for byte in HEAD * 100:
            connection.sendall(bytes([byte]))
            time.sleep(0.02)
    assert time.monotonic() - start < PATIENCE_S / 2  # the server has closed it


def test_a_second_head_has_the_same_time(client: Client) -> None:
    received = client.raw(GET, b"GET /hea", pause_s=0.1)
    assert first_status(received) == 200
    assert problem(received) == (408, "slow_head")


def test_an_idle_connection_is_closed(client: Client) -> None:
    start = time.monotonic()
    received = client.raw(GET)
    assert received.count(b"HTTP/1.1 200") == 1
    assert 0.9 < time.monotonic() - start < PATIENCE_S / 2


def test_half_a_body_is_not_waited_for(client: Client) -> None:
    received = client.raw(HEAD + f"Content-Length: {len(PICTURE)}\r\n\r\n".encode() + PICTURE[:50])
    assert problem(received) == (408, "slow_body")


def test_a_body_that_trickles_gains_no_time(client: Client) -> None:
    with client.connected() as connection, contextlib.suppress(OSError):
        connection.sendall(HEAD + b"Content-Length: 100000\r\n\r\n")
        start = time.monotonic()
        while time.monotonic() - start < PATIENCE_S / 2:
            connection.sendall(b"x")
            time.sleep(0.02)
        pytest.fail("the server went on to read")


def test_a_client_that_goes_in_the_middle(client: Client) -> None:
    for part in (HEAD, HEAD + b"Content-Length: 1000\r\n\r\n" + PICTURE[:50]):
        with client.connected() as connection:
            connection.sendall(part)


def test_a_body_that_is_longer_than_it_says(client: Client) -> None:
    said = f"Content-Length: {len(PICTURE)}\r\n\r\n".encode()
    received = client.raw(HEAD + said + PICTURE + b"and more\r\n\r\n")
    assert first_status(received) == 200
    assert problem(received) == (400, "malformed_request")


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 hello of TLS\r\n\r\n", 400),
        (b"nonsense\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),  # no host
        (HEAD + b"Content-Length: -5\r\n\r\n", 400),
        (HEAD + b"Content-Length: five\r\n\r\n", 400),
        (HEAD + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n", 400),
        (HEAD + b"Transfer-Encoding: gzip, chunked\r\n\r\n", 501),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\nno size\r\n", 400),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + b"f" * 30 + b"\r\n", 400),
        (b"GET /" + b"x" * 6000 + b" HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"y" * 6000, 431),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"A: b\r\n" * 2000, 431),
        (b"GET /\x00 HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nA: b\x00\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\n A: folded\r\nHost : x\r\n\r\n", 400),
    ],
)
def test_what_is_no_request_is_refused_in_json(client: Client, request_: bytes, status: int) -> None:
    received = client.raw(request_)
    got, code = problem(received)
    assert (got, code) == (status, "head_too_large" if status == 431 else "malformed_request")
    assert b"Traceback" not in received


def test_a_body_of_all_the_bytes_in_the_world(client: Client) -> None:
    received = client.raw(HEAD + b"Content-Length: " + b"9" * 40 + b"\r\n\r\n")
    assert problem(received) in ((400, "malformed_request"), (413, "request_too_large"))  # some take it for no number


def test_the_limit_of_a_head_is_told(client: Client) -> None:
    received = client.raw(b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"y" * 6000)
    assert json.loads(received.rpartition(b"\r\n\r\n")[2])["error"]["expected"].startswith("at most 4096 bytes")


def test_a_refused_body_is_read_on_for_a_while_so_that_the_answer_arrives(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rtdetrv4.serving.connection.LINGER_S", SLOW_S)
    with client.connected() as connection:
        connection.sendall(HEAD + b"Content-Length: 100000000\r\n\r\n" + bytes(200_000))
        assert first_status(connection.recv(65536)) == 413
        start = time.monotonic()
        with contextlib.suppress(OSError):
            while time.monotonic() - start < PATIENCE_S / 2:
                connection.sendall(bytes(1000))
                time.sleep(0.01)
            pytest.fail("the server went on to read")
        assert time.monotonic() - start > SLOW_S / 2


def test_after_a_refused_body_the_connection_goes_on(client: Client) -> None:
    said = b"Content-Length: 500001\r\n\r\n"
    received = client.raw(HEAD + said + bytes(500_001) + GET)
    assert received.index(b"HTTP/1.1 413") < received.index(b"HTTP/1.1 200")


def test_requests_in_a_row(client: Client) -> None:
    request = HEAD + f"Content-Length: {len(PICTURE)}\r\n\r\n".encode() + PICTURE
    last = GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
    received = client.raw(request + GET + request + last)
    assert received.count(b"HTTP/1.1 200 OK") == 4


def test_a_body_is_sent_when_it_is_asked_for(client: Client) -> None:
    expecting = b"Expect: 100-continue\r\n"
    with client.connected() as connection:
        connection.sendall(HEAD + expecting + f"Content-Length: {len(PICTURE)}\r\n\r\n".encode())
        assert connection.recv(65536).startswith(b"HTTP/1.1 100")
        connection.sendall(PICTURE)
        assert first_status(connection.recv(65536)) == 200
    received = client.raw(HEAD + expecting + b"Content-Length: 100000000\r\n\r\n")
    assert first_status(received) == 413  # and nothing is asked for


def test_a_client_that_does_not_read_its_answer_is_let_go(client: Client) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (1600, 1600, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "JPEG", quality=10)
    data = buffer.getvalue()
    assert len(data) < 400_000
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        connection.settimeout(PATIENCE_S)
        connection.connect(("127.0.0.1", client.port))
        head = HEAD.replace(b"/predict", b"/predict?format=png").replace(b"image/png", b"image/jpeg")
        connection.sendall(head + f"Content-Length: {len(data)}\r\n\r\n".encode() + data)  # a PNG of megabytes
        assert connection.recv(10)
        deadline = time.monotonic() + PATIENCE_S
        while client.server.server_state.connections:
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_there_is_room_for_a_new_connection_if_another_waits(client: Client) -> None:
    with contextlib.ExitStack() as stack:
        idle = [stack.enter_context(client.connected()) for _ in range(8)]
        assert client.get("/health").status == 200
        closed = 0
        for connection in idle:
            connection.settimeout(0.05)
            with contextlib.suppress(TimeoutError):
                closed += connection.recv(1) == b""
        assert 1 <= closed <= 8


def test_a_hundred_connections_at_once(client: Client) -> None:
    """Twelve times as many as there may be, some of them in the middle of something."""
    with contextlib.ExitStack() as stack:
        connections = [stack.enter_context(client.connected()) for _ in range(100)]
        for number, connection in enumerate(connections):
            with contextlib.suppress(OSError):
                connection.sendall((HEAD, b"GET", HEAD + b"Content-Length: 9\r\n\r\n", b"")[number % 4])
        deadline = time.monotonic() + PATIENCE_S
        while len(client.server.server_state.connections) > 9:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        for connection in connections:  # all come to an end
            read_all(connection)


def test_connections_that_all_have_requests_leave_no_room(client: Client) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(8):
            connection = stack.enter_context(client.connected())
            connection.sendall(HEAD + b"Content-Length: 9\r\n\r\nhalf")
        deadline = time.monotonic() + PATIENCE_S
        while len(client.server.server_state.tasks) < 8:
            assert time.monotonic() < deadline
            time.sleep(0.005)
        assert problem(client.raw()) == (503, "too_many_connections")


def test_an_address_that_cannot_be_had() -> None:
    with open_socket(Place(port=0)) as taken:
        taken.listen()
        with pytest.raises(ConfigError, match="give another with --port"):
            open_socket(Place(port=taken.getsockname()[1]))
    for place, text in ((Place(host="no such host"), "cannot listen"), (Place(port=70_000), "port: got 70000")):
        with pytest.raises(ConfigError, match=text):
            open_socket(place)


def test_more_connections_than_files() -> None:
    check_files(1)
    with pytest.raises(ConfigError, match="ulimit -n"):
        check_files(10**9)
