from __future__ import annotations

import pytest

from rtdetrv4.errors import SourceError
from rtdetrv4.runtime.urls import Credentials, address_of, host_of, redacted, without_credentials


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
