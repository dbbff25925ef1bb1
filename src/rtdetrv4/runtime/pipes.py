"""Images from a pipe, such as stdin: JPEG files one after the other, or raw pixels."""

from __future__ import annotations

import logging
import re
import select
import sys
import threading
from collections.abc import Iterator
from typing import BinaryIO, Literal, NamedTuple

import numpy as np

from rtdetrv4.errors import ConfigError, SourceError
from rtdetrv4.runtime.pixels import PixelsError, decode_image
from rtdetrv4.runtime.videos import Clock, Picture

logger: logging.Logger = logging.getLogger(__name__)

CHUNK = 64 * 1024
WAKE_S = 0.2
MAX_JPEG_BYTES = 64 * 1024 * 1024
MAX_SIDE = 2**16
_START = b"\xff\xd8\xff"
_SOI, _EOI, _SOS = 0xD8, 0xD9, 0xDA


class PipeFormat(NamedTuple):
    """What comes through a pipe."""

    kind: Literal["mjpeg", "rgb24"]
    height: int = 0
    """Of raw images; JPEG files say their own."""
    width: int = 0

    @classmethod
    def parse(cls, text: str) -> PipeFormat:
        """Parse "mjpeg" or "rgb24:WIDTHxHEIGHT", in FFmpeg's words and order.

        Raises:
            ConfigError: it is neither.
        """
        if text == "mjpeg":
            return cls("mjpeg")
        match = re.fullmatch(r"rgb24:(\d{1,5})x(\d{1,5})", text)
        sides = [int(side) for side in match.groups()] if match else [0]
        if match is None or not all(0 < side < MAX_SIDE for side in sides):
            raise ConfigError(
                f'stdin format: got "{text}", expected mjpeg, or rgb24:WIDTHxHEIGHT such as rgb24:640x480.'
            )
        return cls("rgb24", sides[1], sides[0])


MJPEG = PipeFormat("mjpeg")


class Pipe(NamedTuple):
    """A source of images: a file that is read to its end.

    ```python
    Pipe(sys.stdin.buffer, PipeFormat.parse("rgb24:640x480"))
    ```
    """

    file: BinaryIO
    format: PipeFormat = MJPEG
    name: str = "stdin"

    @classmethod
    def stdin(cls, format: PipeFormat = MJPEG) -> Pipe:
        """The pipe on standard input.

        Raises:
            SourceError: nothing is piped.
        """
        if sys.stdin is None or sys.stdin.isatty():
            raise SourceError(
                "- reads images from a pipe, and nothing is piped; for example: "
                "ffmpeg -i clip.mp4 -f mjpeg - | rtdetrv4 predict -"
            )
        return cls(sys.stdin.buffer, format)

    @property
    def can_wait(self) -> bool:
        """Whether a thread that waits for data can be told to stop."""
        try:
            select.select([self.file], [], [], 0)
        except (OSError, ValueError, TypeError, AttributeError):  # Windows' pipes, and files in memory
            return False
        return True


def read_pipe(pipe: Pipe, stop: threading.Event, every: int = 1) -> Iterator[Picture]:
    """The images of a pipe, each `every`-th of them, with the times at which they came.

    Raises:
        SourceError: the data are no images of this format.
    """
    clock = Clock()
    pieces = _jpegs(pipe, stop) if pipe.format.kind == "mjpeg" else _raw(pipe, stop)
    for index, piece in enumerate(pieces):
        if index % every:
            continue
        if pipe.format.kind == "rgb24":
            image = np.frombuffer(piece, np.uint8).reshape(pipe.format.height, pipe.format.width, 3)
        else:
            try:
                image = decode_image(piece)
            except PixelsError as error:
                raise SourceError(f"{pipe.name}: image {index} {error}") from error
        yield Picture(image, index, clock())


def _chunks(pipe: Pipe, stop: threading.Event) -> Iterator[bytes]:
    """What comes, as it comes."""
    can_wait = pipe.can_wait
    # Unlike `read`, this returns what there is. It leaves nothing in Python's buffer, of which `select` knows nothing.
    read = getattr(pipe.file, "read1", pipe.file.read)
    while not stop.is_set():
        if can_wait and not select.select([pipe.file], [], [], WAKE_S)[0]:
            continue
        data = read(CHUNK)
        if not data:
            return
        yield data


def _raw(pipe: Pipe, stop: threading.Event) -> Iterator[bytes]:
    num_bytes = pipe.format.height * pipe.format.width * 3
    size = f"{pipe.format.width}×{pipe.format.height}"
    waiting = bytearray()
    num_images = 0
    for chunk in _chunks(pipe, stop):
        waiting += chunk
        while len(waiting) >= num_bytes:
            yield bytes(waiting[:num_bytes])
            del waiting[:num_bytes]
            num_images += 1
    if stop.is_set():
        return
    if not num_images:
        raise SourceError(f"{pipe.name}: {len(waiting)} bytes came, and an RGB image of {size} has {num_bytes}")
    if waiting:
        logger.warning("%s ends within an image of %s; is that its size?", pipe.name, size)


def _jpegs(pipe: Pipe, stop: threading.Event) -> Iterator[bytes]:
    splitter = JpegSplitter()
    num_images = num_bytes = 0
    for chunk in _chunks(pipe, stop):
        num_bytes += len(chunk)
        for image in splitter.add(chunk):
            yield image
            num_images += 1
        if splitter.num_waiting > MAX_JPEG_BYTES:
            raise SourceError(f"{pipe.name}: image {num_images} is larger than {MAX_JPEG_BYTES // 1024**2} MiB")
    if stop.is_set():
        return
    if not num_images:
        raise SourceError(
            f"{pipe.name}: no JPEG image is in the {num_bytes} bytes that came; expected -f mjpeg of FFmpeg"
        )
    if splitter.num_waiting:
        logger.warning("%s ends within an image, which is left out", pipe.name)


class JpegSplitter:
    """Cuts JPEG files out of a stream of bytes, whatever lies between them, such as the headers of multipart HTTP.

    A file is read segment by segment, because a photo has another one in it, its preview.
    """

    def __init__(self) -> None:
        self._bytes = bytearray()
        self._at: int | None = None  # where the next marker is looked for; None: no file has begun
        self._is_scan = False  # compressed pixels precede it

    @property
    def num_waiting(self) -> int:
        """Bytes of a file that is not complete."""
        return 0 if self._at is None else len(self._bytes)

    def add(self, data: bytes) -> Iterator[bytes]:
        """Yield the files that end in these bytes."""
        self._bytes += data
        while True:
            if self._at is None and not self._find_start():
                return
            end = self._find_end()
            if end is None:
                return
            yield bytes(self._bytes[:end])
            del self._bytes[:end]
            self._at = None

    def _find_start(self) -> bool:
        start = self._bytes.find(_START)
        if start < 0:
            del self._bytes[: -len(_START) + 1]  # a file may have begun with the last ones
            return False
        del self._bytes[:start]
        self._at, self._is_scan = 2, False
        return True

    def _find_end(self) -> int | None:
        """Go through the segments, as far as they are there."""
        assert self._at is not None
        data = self._bytes
        while True:
            at = data.find(b"\xff", self._at) if self._is_scan else self._at
            if at < 0:
                self._at = len(data)
                return None
            self._at = at
            if len(data) < at + 2:
                return None
            marker = data[at + 1]
            if data[at] != 0xFF or marker == 0xFF:  # filled up
                self._at += 1
            elif self._is_scan and (marker == 0 or 0xD0 <= marker <= 0xD7):  # a byte 0xFF, or a restart
                self._at += 2
            elif marker == _EOI:
                return at + 2
            elif marker == _SOI:  # the file was cut off, and the next begins
                del data[:at]
                self._at, self._is_scan = 2, False
            else:
                if len(data) < at + 4:
                    return None
                length = int.from_bytes(data[at + 2 : at + 4], "big")
                if len(data) < at + 2 + length:
                    return None
                self._at = at + 2 + length
                self._is_scan = marker == _SOS
