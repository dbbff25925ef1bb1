"""A server in a thread of the test, with the smallest exported model, and a client that sends what it is told."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import onnx
import onnx.parser

from color_model import GRAPH, METADATA
from rtdetrv4.runtime.export_metadata import METADATA_KEY
from rtdetrv4.serving import Service
from rtdetrv4.serving.access import Access
from rtdetrv4.serving.fetching import Fetcher
from rtdetrv4.serving.server import Place, Server, open_socket

PATIENCE_S = 20.0
BOUNDARY = "boundary"


def write_color_model(path: Path, batch: str = "batch") -> Path:
    model = onnx.parser.parse_model(GRAPH.format(batch=batch))
    onnx.helper.set_model_props(model, {METADATA_KEY: METADATA.to_json()})
    onnx.save(model, str(path))
    return path


class Answer(NamedTuple):
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        """What the server says of a request that it does not serve."""
        assert self.headers["content-type"] == "application/json"
        (key,) = self.json
        assert key == "error"
        assert set(self.json["error"]) == {"code", "what", "got", "expected"}
        return self.json["error"]


class Client(NamedTuple):
    port: int
    server: Server

    def ask(
        self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> Answer:
        with closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_S)) as connection:
            connection.request(method, path, body, dict(headers or {}))
            return read_answer(connection.getresponse())

    def get(self, path: str, **headers: str) -> Answer:
        return self.ask("GET", path, headers=headers)

    def predict(self, *images: bytes, query: str = "", headers: Mapping[str, str] | None = None) -> Answer:
        body, kind = form([("image", image) for image in images])
        return self.ask("POST", f"/predict?{query}", body, {"Content-Type": kind, **(headers or {})})

    @contextmanager
    def connected(self) -> Iterator[socket.socket]:
        with socket.create_connection(("127.0.0.1", self.port), PATIENCE_S) as connection:
            yield connection

    def raw(self, *parts: bytes, pause_s: float = 0.0) -> bytes:
        """Send bytes, and return everything that comes back until the server closes the connection."""
        with self.connected() as connection:
            for part in parts:
                connection.sendall(part)
                time.sleep(pause_s)
            return read_all(connection)


def read_answer(response: http.client.HTTPResponse) -> Answer:
    return Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())


def read_all(connection: socket.socket) -> bytes:
    received = b""
    try:
        while chunk := connection.recv(65536):
            received += chunk
    except ConnectionResetError:
        pass
    return received


def form(parts: Sequence[tuple[str, bytes]]) -> tuple[bytes, str]:
    """A form, and its content type."""
    lines: list[bytes] = []
    for name, data in parts:
        file = f'; filename="{name}.png"' if name == "image" else ""
        lines += [
            f"--{BOUNDARY}\r\n".encode(),
            f'Content-Disposition: form-data; name="{name}"{file}\r\n\r\n'.encode(),
            data + b"\r\n",
        ]
    return b"".join([*lines, f"--{BOUNDARY}--\r\n".encode()]), f"multipart/form-data; boundary={BOUNDARY}"


@contextmanager
def running(service: Service, access: Access | None = None, *, fetcher: Fetcher | None = None) -> Iterator[Client]:
    """Serve until the test ends; then every thread must have ended, and every request must have been answered."""
    before = set(threading.enumerate())
    ready = threading.Event()
    server = Server(service, access or Access(), Place(port=0), fetcher=fetcher, announce=ready.set)
    listening = open_socket(Place(port=0))
    thread = threading.Thread(target=server.run, args=([listening],))
    thread.start()
    try:
        assert ready.wait(PATIENCE_S)
        yield Client(listening.getsockname()[1], server)
    finally:
        server.should_exit = True
        thread.join(PATIENCE_S)
        listening.close()
        service.close()
        assert not thread.is_alive()
    deadline = time.monotonic() + PATIENCE_S
    while left := [each for each in threading.enumerate() if each not in before]:
        assert time.monotonic() < deadline, f"still running: {left}"
        time.sleep(0.01)
    assert not any(model.batcher.num_reserved for model in service.models.values())
