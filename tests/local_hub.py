"""A hub on this machine for huggingface_hub's own client, with what can go wrong."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple

import pytest
from huggingface_hub import constants, file_download

COMMIT = "c0ffee" + "0" * 34


class Request(NamedTuple):
    method: str
    file: str
    """owner/repo/path"""
    revision: str
    range: str | None
    token: str | None


@dataclass
class Served:
    """A file of the hub."""

    content: bytes
    stated_hash: str | None = None
    """What the hub says its SHA-256 is; None for the truth."""
    status: int = 200
    error_code: str = ""
    """Of the hub, such as GatedRepo."""
    token: str | None = None
    """Who does not send it gets `status`."""
    cuts: list[int] = field(default_factory=list)
    """After how many bytes the next downloads break off."""
    status_after_cut: int = 200
    moved_to: str | None = None
    """Where the bytes are: another server, or another repository of this one, which the answer leads on to."""
    pause: float = 0.0
    """Seconds between pieces of a hundredth of the file."""


class LocalHub(ThreadingHTTPServer):
    """Serves `files` by owner/repo/path and remembers what it was asked for."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, Served] = {}
        self.requests: list[Request] = []
        self.silent = threading.Event()
        """Set: requests are accepted and never answered."""
        self.commit: str | None = COMMIT
        """None: what answers is no hub."""
        self.stopped = threading.Event()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def downloads(self) -> list[str]:
        return [request.file for request in self.requests if request.method == "GET"]


@contextmanager
def running_hub() -> Iterator[LocalHub]:
    with LocalHub() as hub:
        thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield hub
        finally:
            hub.stopped.set()
            hub.shutdown()
            thread.join()


def use_hub(endpoint: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What HF_ENDPOINT and HF_HUB_CACHE do before the client is imported."""
    variables = {
        "DOWNLOAD_CHUNK_SIZE": 100,  # of a download that breaks off, whole chunks are kept
        "ENDPOINT": endpoint,
        "HF_HUB_CACHE": str(cache),
        "HUGGINGFACE_CO_URL_TEMPLATE": endpoint + "/{repo_id}/resolve/{revision}/{filename}",
    }
    for name, value in variables.items():
        monkeypatch.setattr(constants, name, value)
        if hasattr(file_download, name):  # which has its own in clients before 1.0
            monkeypatch.setattr(file_download, name, value)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.delenv("HF_TOKEN", raising=False)


class _Handler(BaseHTTPRequestHandler):
    server: LocalHub

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        if self.path.startswith("/api/"):  # what some clients ask of their own accord
            self._refuse(404, "EntryNotFound")
            return
        owner, repository, _, revision, path = self.path.lstrip("/").split("/", maxsplit=4)
        name, token = f"{owner}/{repository}/{path}", self.headers["Authorization"]
        self.server.requests.append(Request(self.command, name, revision, self.headers["Range"], token))
        if self.server.silent.is_set():
            self.server.stopped.wait()
            return
        served = self.server.files.get(name)
        if served is None:
            self._refuse(404, "EntryNotFound")
        elif served.status != 200 and (served.token is None or token != f"Bearer {served.token}"):
            self._refuse(served.status, served.error_code)
        elif served.moved_to is not None:
            self._lead_on(served, served.moved_to)
        else:
            self._send(served)

    def _lead_on(self, served: Served, location: str) -> None:
        self.send_response(307 if location.startswith("/") else 302)
        self.send_header("Location", location)
        if not location.startswith("/"):  # as the hub describes what it keeps elsewhere
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("X-Linked-Etag", f'"{hashlib.sha256(served.content).hexdigest()}"')
            self.send_header("X-Linked-Size", str(len(served.content)))
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _refuse(self, status: int, code: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _send(self, served: Served) -> None:
        start = int((self.headers["Range"] or "bytes=0-").removeprefix("bytes=").rstrip("-"))
        size = len(served.content)
        self.send_response(206 if start else 200)
        if self.server.commit is not None:
            self.send_header("X-Repo-Commit", self.server.commit)
        self.send_header("ETag", f'"{served.stated_hash or hashlib.sha256(served.content).hexdigest()}"')
        self.send_header("Content-Length", str(size - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{size - 1}/{size}")
        self.end_headers()
        if self.command == "HEAD":
            return
        end = size
        if served.cuts:
            end, served.status = start + served.cuts.pop(0), served.status_after_cut
        piece = max(1, size // 100) if served.pause else max(1, end - start)
        for position in range(start, end, piece):
            self.wfile.write(served.content[position : min(position + piece, end)])
            time.sleep(served.pause)
