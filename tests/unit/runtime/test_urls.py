from __future__ import annotations

import http.server
import threading
import urllib.request
from collections.abc import Iterator

import pytest

from rtdetrv4.errors import SourceError
from rtdetrv4.runtime.redirects import RedirectError, _Redirects
from rtdetrv4.runtime.urls import Credentials, address_of, download, host_of, redacted, without_credentials


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("rtsp://admin:secret@10.0.0.5:554/cam?channel=1&token=abc", "rtsp://***@10.0.0.5:554/cam?channel=1&token=***"),
        ("rtsp://admin@cam/live", "rtsp://***@cam/live"),
        ("http://cam/a.jpg", "http://cam/a.jpg"),
        ("http://[::1]:80/a.jpg", "http://[::1]:80/a.jpg"),
        ("http://site/@me/a.jpg?w=640", "http://site/@me/a.jpg?w=640"),
        ("http://cam/a?usr=admin&pwd=12345&n=", "http://cam/a?usr=***&pwd=***&n="),
        ("http://cam/a?secret", "http://cam/a?***"),
        ("http://cam/a#secret", "http://cam/a"),
        # What somebody types who does not know that characters must be escaped.
        ("rtsp://admin:se#cr/et?@cam/live", "rtsp://***@cam/live"),
        ("rtsp://admin:1/secret@cam/live", "rtsp://***@cam/live"),
        ("rtsp://admin:p@secret@cam/live", "rtsp://***@cam/live"),
        ("rtsp://admin:secret", "rtsp://***"),
        ("folder/photo.jpg", "folder/photo.jpg"),
    ],
)
def test_passwords_are_not_shown(url: str, shown: str) -> None:
    assert redacted(url) == shown


def test_a_url_without_its_credentials() -> None:
    assert without_credentials("http://a%40b:p%3Aw@cam:81/x?y=1") == ("http://cam:81/x?y=1", Credentials("a@b", "p:w"))
    assert without_credentials("http://u:p@[::1]:81/x")[0] == "http://[::1]:81/x"
    assert without_credentials("http://cam/x") == ("http://cam/x", None)
    assert host_of("https://u:p@hooks.site/services/secret") == "https://hooks.site"
    assert address_of("rtsp://u:p@cam/x") == ("cam", 554)
    assert address_of("http://cam:8080/x") == ("cam", 8080)
    assert address_of("srt://cam/x") is None
    with pytest.raises(SourceError, match="write characters such as") as error:
        without_credentials("http://admin:se#cret@cam/x")
    assert "cret" not in str(error.value)


class Answers(http.server.BaseHTTPRequestHandler):
    """Redirects to what is behind `/to?`, and has a few bytes elsewhere."""

    def do_GET(self) -> None:
        path, _, target = self.path.partition("?")
        self.send_response(302 if path == "/to" else 200)
        if path == "/to":
            self.send_header("Location", target)
        self.send_header("Content-Length", "3")
        self.end_headers()
        self.wfile.write(b"abc")

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers) as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{running.server_address[1]}"
        running.shutdown()
        thread.join()


def test_a_redirect_is_followed(server: str) -> None:
    assert download(f"{server}/a.jpg") == b"abc"
    assert download(f"{server}/to?/a.jpg") == b"abc"
    assert download(f"{server}/to?{server}/a.jpg") == b"abc"


@pytest.mark.parametrize("target", ["file:///etc/hostname", "ftp://127.0.0.1/a", "gopher://127.0.0.1/", "data:,abc"])
def test_a_redirect_to_no_web_server(server: str, target: str) -> None:
    with pytest.raises(
        SourceError, match=rf"cannot be downloaded: it redirects to {target.partition(':')[0]}:, expected"
    ):
        download(f"{server}/to?{target}")


def test_a_redirect_into_a_network_of_one_s_own(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server plays one with a public address, and then the one to which it redirects."""
    places = iter([True, False])
    monkeypatch.setattr("rtdetrv4.runtime.redirects.is_public", lambda address: next(places))
    with pytest.raises(SourceError, match="cannot be downloaded: it redirects to an address that is not public"):
        download(f"{server}/to?{server}/a.jpg")


def test_a_redirect_from_a_camera_to_the_internet(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    places = iter([False, True, False])
    monkeypatch.setattr("rtdetrv4.runtime.redirects.is_public", lambda address: next(places))
    assert download(f"{server}/to?/to?/a.jpg") == b"abc"


def test_a_redirect_out_of_encryption() -> None:
    request = urllib.request.Request("https://site.example/a.jpg")
    with pytest.raises(RedirectError, match="it redirects from https: to http:"):
        _Redirects().redirect_request(request, None, 302, "", {}, "http://site.example/a.jpg")
    with pytest.raises(SourceError, match="cannot be downloaded"):
        download("file:///etc/hostname")


def test_a_server_that_never_ends(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rtdetrv4.runtime.urls.MAX_DOWNLOAD_S", -1)
    with pytest.raises(SourceError, match="no answer in time"):
        download(f"{server}/a.jpg")
    monkeypatch.setattr("rtdetrv4.runtime.urls.MAX_DOWNLOAD_S", 60)
    monkeypatch.setattr("rtdetrv4.runtime.urls.MAX_DOWNLOAD_BYTES", 2)
    with pytest.raises(SourceError, match="is larger than"):
        download(f"{server}/a.jpg")
