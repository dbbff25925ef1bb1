"""Images by URL: what may be fetched, and what a stranger cannot make the server do."""

from __future__ import annotations

import io
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest
from PIL import Image

from rtdetrv4.serving import Limits, Network, Service
from rtdetrv4.serving.access import Access
from rtdetrv4.serving.fetching import MAX_FETCHES, MAX_REDIRECTS, Fetcher, is_public, resolve
from rtdetrv4.serving.refusals import RefusedError
from running_server import PATIENCE_S, form, running

CONTENT = b"x" * 100_000


class Elsewhere(BaseHTTPRequestHandler):
    """A server that strangers name."""

    protocol_version = "HTTP/1.1"
    seen: list[tuple[str, str]]
    released: threading.Event

    def do_GET(self) -> None:
        self.seen.append((self.headers["Host"], self.path))
        if self.path.startswith("/to/"):
            self._send(302, b"", Location=self.path.removeprefix("/to/").replace("%7C", "/"))
        elif self.path == "/astray":
            self._send(302, b"", Location="http://[x")
        elif self.path == "/loop":
            self._send(302, b"", Location="/loop")
        elif self.path == "/missing":
            self._send(404, b"secret of the inner network")
        elif self.path == "/gzip":
            self._send(200, b"", **{"Content-Encoding": "gzip"})
        elif self.path == "/short":
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(b"x" * 10)
            self.close_connection = True
        elif self.path == "/endless":
            self.send_response(200)
            self.end_headers()
            self.close_connection = True
            while not self.released.is_set():
                self.wfile.write(b"x" * 65536)
        elif self.path.startswith("/hold"):
            assert self.released.wait(PATIENCE_S)
            self._send(200, CONTENT)
        elif self.path == "/trickle":
            self.wfile.write(b"HTTP/1.1 200 OK\r\nA: ")
            self.close_connection = True
            while not self.released.wait(0.02):
                self.wfile.write(b"b")
        else:
            self._send(200, CONTENT)

    def _send(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


class Quiet(ThreadingHTTPServer):
    def handle_error(self, *_: Any) -> None:
        """A client that was cut off is what some tests want."""


@pytest.fixture
def port() -> Iterator[int]:
    Elsewhere.seen, Elsewhere.released = [], threading.Event()
    with Quiet(("127.0.0.1", 0), Elsewhere) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server.server_port
        Elsewhere.released.set()
        server.shutdown()
        thread.join(PATIENCE_S)


@contextmanager
def fetching(port: int, *, resolve: Callable[[str, int], list[str]] | None = None, **options: Any) -> Iterator[Fetcher]:
    """A fetcher for which this machine is a public one, under names that end in .com."""

    def of_names(host: str, _: int) -> list[str]:
        return ["127.0.0.1"] if host.endswith(".com") else ["10.0.0.1"]

    settings = {
        "max_bytes": 200_000,
        "resolve": resolve or of_names,
        "is_public": lambda address: address == "127.0.0.1",
        "ports": {"http": port},
    }
    fetcher = Fetcher(**settings | options)
    try:
        yield fetcher
    finally:
        fetcher.close()


def refusal(fetcher: Fetcher, url: str) -> RefusedError:
    with pytest.raises(RefusedError) as refused:
        fetcher.fetch(url)
    return refused.value


def test_an_image_is_fetched(port: int) -> None:
    with fetching(port) as fetcher:
        for url in (
            "http://a.com/photo.jpg",
            f"http://a.com:{port}/photo.jpg?size=1#part",
            "http://A.COM/é",
        ):
            assert fetcher.start(url).result(PATIENCE_S) == CONTENT
    assert [path for _, path in Elsewhere.seen] == ["/photo.jpg", "/photo.jpg?size=1", "/%C3%A9"]
    assert {host for host, _ in Elsewhere.seen} == {f"a.com:{port}"}


def test_redirects_are_new_urls(port: int) -> None:
    with fetching(port) as fetcher:
        assert fetcher.fetch("http://a.com/to/http:||b.com|c") == CONTENT
        assert fetcher.fetch("http://a.com/to/|d") == CONTENT
        assert [host.partition(":")[0] for host, _ in Elsewhere.seen] == ["a.com", "b.com", "a.com", "a.com"]
        Elsewhere.seen.clear()
        for elsewhere in (
            "http:||inner|",
            "http:||a.com:1|",
            "ftp:||a.com|",
            "file:|||etc|passwd",
            "http:||u:p@a.com|",
        ):
            assert refusal(fetcher, f"http://a.com/to/{elsewhere}").status == 422
        assert len(Elsewhere.seen) == 5  # nothing was asked but the redirects themselves
        Elsewhere.seen.clear()
        assert "redirects to what is no URL" in refusal(fetcher, "http://a.com/astray").what
        Elsewhere.seen.clear()
        assert "redirects more than" in refusal(fetcher, "http://a.com/loop").what
        assert len(Elsewhere.seen) == MAX_REDIRECTS + 1


@pytest.mark.parametrize(
    "url",
    [
        *(
            "",
            "a.com/photo.jpg",
            "/etc/passwd",
            "file:///etc/passwd",
            "ftp://a.com/",
            "gopher://a.com/",
            "data:image/png,",
        ),
        *("http://", "http:///photo.jpg", "http://a.com:22/", "http://a.com:99999/", "http://a.com:x/", "http://[::1"),
        *(
            "http://user@a.com/",
            "http://user:hunter2@a.com/",
            "http://a.com/a b",
            "http://a.com/\r\nHost: b",
            "http://a.com/\0",
        ),
        *("http://a.com/" + "x" * 3000, "http://" + "x" * 70 + ".com/", "http://a..com/"),
    ],
)
def test_what_is_no_url_for_strangers(port: int, url: str) -> None:
    with fetching(port) as fetcher:
        refused = refusal(fetcher, url)
        assert (refused.status, refused.code) == (422, "bad_url")
        assert "hunter2" not in refused.what
    assert Elsewhere.seen == []


@pytest.mark.parametrize(
    "addresses", [["10.0.0.1"], ["127.0.0.1", "10.0.0.1"], [], ["::1"], ["169.254.169.254"]], ids=str
)
def test_every_address_must_be_public(port: int, addresses: list[str]) -> None:
    with fetching(port, resolve=lambda *_: addresses) as fetcher:
        refused = refusal(fetcher, "http://a.com/")
        assert refused.code == "unreachable_url"
        assert not any(address in refused.what for address in addresses)
    assert Elsewhere.seen == []


def test_what_was_checked_is_what_is_connected_to(port: int) -> None:
    """A host that means something else when it is asked again, as an attacker's does."""
    asked: list[str] = []

    def resolve(host: str, _: int) -> list[str]:
        asked.append(host)
        return ["127.0.0.1"] if len(asked) == 1 else ["10.0.0.1"]

    with fetching(port, resolve=resolve) as fetcher:
        assert fetcher.fetch("http://a.com/") == CONTENT
        assert asked == ["a.com"]
        assert refusal(fetcher, "http://a.com/").code == "unreachable_url"


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("/missing", "it answers 404"),
        ("/gzip", "it is compressed once more"),
        ("/short", "it ends early"),
        ("/endless", "too large"),
    ],
)
def test_what_does_not_come_whole(port: int, path: str, text: str) -> None:
    with fetching(port) as fetcher:
        refused = refusal(fetcher, f"http://a.com{path}")
        assert text in refused.what
        assert "secret" not in str(refused.content)
        assert refused.status == (413 if path == "/endless" else 422)


def test_what_trickles_gains_no_time(port: int) -> None:
    with fetching(port, timeout_s=0.3) as fetcher:
        start = time.monotonic()
        assert "it takes too long" in refusal(fetcher, "http://a.com/trickle").what
        assert time.monotonic() - start < PATIENCE_S / 2


def test_nobody_is_there() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        with fetching(taken.getsockname()[1]) as fetcher:
            assert "the connection fails" in refusal(fetcher, "http://a.com/").what


def test_only_a_few_are_fetched_at_once(port: int) -> None:
    with fetching(port, timeout_s=PATIENCE_S) as fetcher:
        futures = [fetcher.start("http://a.com/hold") for _ in range(MAX_FETCHES)]
        with pytest.raises(RefusedError) as refused:
            fetcher.start("http://a.com/")
        assert refused.value.status == 429
        Elsewhere.released.set()
        for future in futures:
            assert future.result(PATIENCE_S) == CONTENT
        assert fetcher.start("http://a.com/").result(PATIENCE_S) == CONTENT


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "127.8.8.8", "0.0.0.0", "10.1.2.3", "172.16.0.1", "172.31.255.255", "192.168.1.1", "100.64.0.1"),
        *("169.254.169.254", "168.63.129.16", "100.100.100.200", "192.0.0.192", "224.0.0.1", "255.255.255.255"),
        *("240.0.0.1", "198.18.0.1", "192.0.2.1", "::", "::1", "fe80::1", "fe80::1%eth0", "fc00::1", "fd00:ec2::254"),
        *("ff02::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "2002:7f00:1::", "64:ff9b::7f00:1", "64:ff9b::a00:1"),
        *("64:ff9b:1::1", "2001:db8::1", "::127.0.0.1"),
    ],
)
def test_addresses_that_are_not_public(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", ["1.1.1.1", "93.184.216.34", "172.32.0.1", "2606:4700::1111", "64:ff9b::101:101"])
def test_addresses_that_are_public(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize("host", ["127.1", "2130706433", "0x7f.1", "localhost", "017700000001"])
def test_other_spellings_of_this_machine(host: str) -> None:
    try:
        found = resolve(host, 80)
    except OSError:
        return  # not every system reads it
    assert not any(map(is_public, found))


def test_urls_in_a_request(port: int, network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((20, 30, 3), dtype=np.uint8)).save(buffer, "PNG")
    monkeypatch.setitem(globals(), "CONTENT", buffer.getvalue())
    with (
        fetching(port) as fetcher,
        running(Service({"color": network}), Access(allows_urls=True), fetcher=fetcher) as client,
    ):
        body, kind = form([("url", b"http://a.com/x.png"), ("image", buffer.getvalue()), ("url", b"http://b.com/")])
        answer = client.ask("POST", "/predict", body, {"Content-Type": kind})
        assert answer.status == 200
        assert [image["width"] for image in answer.json["images"]] == [30, 30, 30]
        body, kind = form([("url", b"http://a.com/x.png"), ("url", b"http://169.254.169.254/latest/meta-data/")])
        answer = client.ask("POST", "/predict", body, {"Content-Type": kind})
        assert (answer.status, answer.error["code"]) == (422, "unreachable_url")
        schema = client.get("/openapi.json").json
        assert "url" in str(schema["paths"]["/predict"]["post"]["requestBody"])


def test_fetching_takes_no_longer_than_the_request_may(port: int, network: Network) -> None:
    """Those that have not begun are then left out."""
    service = Service({"color": network}, limits=Limits(timeout_s=0.3))
    urls = [("url", f"http://a.com/hold?{number}".encode()) for number in range(16)]
    with fetching(port) as fetcher, running(service, Access(allows_urls=True), fetcher=fetcher) as client:
        body, kind = form(urls)
        start = time.monotonic()
        answer = client.ask("POST", "/predict", body, {"Content-Type": kind})
        assert (answer.status, answer.error["code"]) == (504, "late")
        assert time.monotonic() - start < 5
        Elsewhere.released.set()
        assert fetcher.start("http://a.com/after").result(PATIENCE_S) == CONTENT
    assert len([path for _, path in Elsewhere.seen if path.startswith("/hold")]) <= 4


def test_what_is_fetched_counts_as_the_request(port: int, network: Network) -> None:
    service = Service({"color": network}, limits=Limits(request_bytes=150_000, image_bytes=150_000))
    with fetching(port) as fetcher, running(service, Access(allows_urls=True), fetcher=fetcher) as client:
        body, kind = form([("url", b"http://a.com/1"), ("url", b"http://a.com/2")])
        answer = client.ask("POST", "/predict", body, {"Content-Type": kind})
        assert (answer.status, answer.error["code"]) == (413, "request_too_large")
