"""Cameras on this machine: MJPEG over HTTP, and H.264 over RTSP, with a password."""

from __future__ import annotations

import base64
import contextlib
import http.server
import io
import socketserver
import struct
import threading
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image

USER, PASSWORD = "admin", "geheim"
_TOKEN = "Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()


def gray(level: int, height: int = 48, width: int = 64) -> np.ndarray:
    """An image of one shade, by which it is known again after compression."""
    return np.full((height, width, 3), level, dtype=np.uint8)


def jpeg(level: int) -> bytes:
    file = io.BytesIO()
    # FFmpeg looks at 2 KiB of a stream before it says what it is.
    Image.fromarray(gray(level)).save(file, "JPEG", quality=95, comment=b"as large as a photo" * 200)
    return file.getvalue()


def write_video(path: Path, levels: list[int], fps: int = 10, height: int = 48, width: int = 64) -> Path:
    """A video with one image of each shade."""
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("mpeg4", rate=fps)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for level in levels:
            for packet in stream.encode(av.VideoFrame.from_ndarray(gray(level, height, width), "rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return path


class Camera:
    """What a camera sends, connection by connection.

    Attributes:
        sessions: the shades of the images of each connection; none are left when the camera is gone.
        is_held: whether connections stay open, silent, after the last image.
        pauses_after: how many images are sent before `goes_on` is waited for.
        num_connections: how many were answered with images.
        port: where it listens.
    """

    def __init__(self, sessions: list[list[int]]) -> None:
        self.sessions = list(sessions)
        self.is_held = False
        self.released = threading.Event()
        self.pauses_after: int | None = None
        self.goes_on = threading.Event()
        self.num_connections = 0
        self.port = 0

    def next_session(self) -> list[int] | None:
        self.num_connections += 1
        return self.sessions.pop(0) if self.sessions else None

    def hold(self) -> None:
        if self.is_held:
            self.released.wait(20)


@contextlib.contextmanager
def _serving(camera: Camera, server: Any) -> Iterator[Camera]:
    server.daemon_threads = True
    camera.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield camera
    finally:
        camera.released.set()
        server.shutdown()
        thread.join()
        server.server_close()


@contextlib.contextmanager
def mjpeg_camera(sessions: list[list[int]]) -> Iterator[Camera]:
    """An HTTP camera. A path that contains "secret" asks for the password."""
    camera = Camera(sessions)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if "secret" in self.path and self.headers.get("Authorization") != _TOKEN:
                self.send_response(401)
                self.send_header("WWW-Authenticate", 'Basic realm="camera"')
                self.end_headers()
                return
            levels = camera.next_session()
            self.send_response(200 if levels is not None else 503)
            self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
            self.end_headers()
            with contextlib.suppress(OSError):  # whoever reads may go at any time
                for index, level in enumerate(levels or []):
                    if index == camera.pauses_after:
                        camera.goes_on.wait(20)
                    data = jpeg(level)
                    head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(data)}\r\n\r\n"
                    self.wfile.write(head.encode() + data + b"\r\n")
                camera.hold()

        def log_message(self, *_: object) -> None: ...

    with _serving(camera, http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)):
        yield camera


@contextlib.contextmanager
def rtsp_camera(sessions: list[list[int]]) -> Iterator[Camera]:
    """An RTSP camera that asks for the password and sends over the connection itself."""
    camera = Camera(sessions)

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            levels: list[int] | None = None
            with contextlib.suppress(OSError):
                while (request := self._request()) is not None:
                    method, headers = request
                    answer = {"CSeq": headers.get("cseq", "0")}
                    if method != "OPTIONS" and headers.get("authorization") != _TOKEN:
                        self._answer("401 Unauthorized", {**answer, "WWW-Authenticate": 'Basic realm="camera"'})
                        continue
                    if method == "DESCRIBE":
                        levels = camera.next_session()
                        if levels is None:
                            self._answer("404 Not Found", answer)
                            return
                        self._answer("200 OK", {**answer, "Content-Type": "application/sdp"}, _sdp())
                    elif method == "SETUP":
                        transport = "RTP/AVP/TCP;unicast;interleaved=0-1"
                        self._answer("200 OK", {**answer, "Transport": transport, "Session": "1"})
                    elif method == "PLAY":
                        self._answer("200 OK", {**answer, "Session": "1"})
                        for packet in _rtp(levels or []):
                            self.wfile.write(b"$\x00" + struct.pack(">H", len(packet)) + packet)
                        camera.hold()
                        return
                    else:
                        self._answer("200 OK", {**answer, "Public": "DESCRIBE, SETUP, PLAY, TEARDOWN"})

        def _request(self) -> tuple[str, dict[str, str]] | None:
            line = self.rfile.readline().decode()
            if not line:
                return None
            headers: dict[str, str] = {}
            while (header := self.rfile.readline().decode().strip()) != "":
                name, _, value = header.partition(":")
                headers[name.lower()] = value.strip()
            return line.split()[0], headers

        def _answer(self, status: str, headers: dict[str, str], body: str = "") -> None:
            lines = [f"RTSP/1.0 {status}", *(f"{name}: {value}" for name, value in headers.items())]
            lines += [f"Content-Length: {len(body)}"] * bool(body)
            self.wfile.write(("\r\n".join(lines) + "\r\n\r\n" + body).encode())

    with _serving(camera, socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)):
        yield camera


def _sdp() -> str:
    media = ["m=video 0 RTP/AVP 96", "a=rtpmap:96 H264/90000", "a=fmtp:96 packetization-mode=1", "a=control:track1"]
    return "\r\n".join(["v=0", "o=- 0 0 IN IP4 127.0.0.1", "s=camera", "t=0 0", *media]) + "\r\n"


def _rtp(levels: list[int]) -> Iterator[bytes]:
    """Every NAL unit in a packet of its own (RFC 6184, section 5.6)."""
    encoder: Any = av.CodecContext.create("libx264", "w")
    encoder.width, encoder.height, encoder.pix_fmt = 64, 48, "yuv420p"
    encoder.time_base = encoder.framerate = Fraction(1, 10)
    encoder.options = {"preset": "ultrafast", "tune": "zerolatency", "x264-params": "keyint=1"}
    number = 0
    for index, level in enumerate(levels):
        for packet in encoder.encode(av.VideoFrame.from_ndarray(gray(level), "rgb24")):
            units = [unit.rstrip(b"\0") for unit in bytes(packet).split(b"\0\0\1") if unit.strip(b"\0")]
            for unit in units:
                is_last = unit is units[-1]
                yield struct.pack(">BBHII", 0x80, 96 | (0x80 if is_last else 0), number, index * 9000, 1) + unit
                number += 1
