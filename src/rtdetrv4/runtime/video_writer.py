"""Videos that play everywhere: H.264 in MP4, written by PyAV (docs/adr/0013-video.md)."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import cv2
import numpy as np

from rtdetrv4.errors import MissingDependencyError, require

EXTRA = "video"
TIME_BASE = Fraction(1, 90_000)
"""Seconds per tick, as in MPEG."""
USUAL_FPS = 25
"""Of images that do not say when they were taken."""
BT_709 = 1
"""The number of its matrix, transfer and primaries in H.273; players take it for granted in HD videos."""
LIMITED_RANGE = 1


class _Encoder(NamedTuple):
    name: str
    suffix: str
    options: dict[str, str]


_ENCODERS = (
    _Encoder("libx264", ".mp4", {"preset": "veryfast", "crf": "23", "bf": "0"}),
    _Encoder("libopenh264", ".mp4", {}),
    _Encoder("libvpx-vp9", ".webm", {"deadline": "realtime", "cpu-used": "8", "crf": "32", "b": "0"}),
)


class VideoWriter:
    """Writes images and their times to a video; sound is not kept.

    Images of odd size gain a row or column, which repeats the last one: H.264 wants even sides. Images of another size
    than the first are scaled to it. The file can be watched while it grows, and after a crash.

    Args:
        path: the file, which must not exist; its suffix becomes that of the encoder that there is.

    Attributes:
        path: the file.

    Raises:
        MissingDependencyError: PyAV is not installed, or has no encoder.
        FileExistsError: the file exists.
    """

    def __init__(self, path: Path) -> None:
        self._av = require("av", EXTRA)
        self._encoder = _encoder(self._av)
        self.path: Path = path.with_suffix(self._encoder.suffix)
        self.path.open("xb").close()
        self._container: Any = None
        self._stream: Any = None
        self._start: float | None = None
        self._ticks = -1
        self._interval = round(1 / (USUAL_FPS * TIME_BASE))

    def add(self, image: np.ndarray, time: float | None) -> None:
        """Append an image.

        Args:
            image: H×W×3 uint8 RGB.
            time: when it is shown, in seconds, counted from that of the first image; None: 1/25 s after the last one.
        """
        stream = self._open(image.shape[0], image.shape[1]) if self._stream is None else self._stream
        size = (stream.width, stream.height)
        if image.shape[1] in (size[0], size[0] - 1) and image.shape[0] in (size[1], size[1] - 1):
            missing = (size[1] - image.shape[0], size[0] - image.shape[1])
            if any(missing):
                image = np.pad(image, ((0, missing[0]), (0, missing[1]), (0, 0)), mode="edge")
        else:
            image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
        frame = self._av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
        frame = frame.reformat(format="yuv420p", dst_colorspace="ITU709", dst_color_range="MPEG")
        frame.pts = self._next_tick(time)
        frame.time_base = TIME_BASE
        self._write(self._container, stream.encode(frame))

    def close(self) -> None:
        """Complete the file."""
        if self._container is None:
            return
        container, self._container = self._container, None
        with contextlib.closing(container):
            self._write(container, self._stream.encode(None))

    def _open(self, height: int, width: int) -> Any:
        options = {"flush_packets": "1"}  # each fragment reaches the file when it is complete
        if self.path.suffix == ".mp4":
            # Fragments, of which a file after a crash consists; at the end, one index as every player knows it. FFmpeg
            # 7.1 and newer, as in the wheels, write it.
            options["movflags"] = "+hybrid_fragmented"
        self._container = self._av.open(str(self.path), "w", container_options=options)
        stream: Any = self._container.add_stream(self._encoder.name, rate=USUAL_FPS, options=self._encoder.options)
        stream.width, stream.height, stream.pix_fmt = width + width % 2, height + height % 2, "yuv420p"
        context = stream.codec_context
        context.time_base = TIME_BASE
        context.gop_size = 10 * USUAL_FPS
        context.color_range = LIMITED_RANGE
        context.colorspace = context.color_primaries = context.color_trc = BT_709
        self._stream = stream
        return stream

    def _write(self, container: Any, packets: Iterable[Any]) -> None:
        for packet in packets:
            packet.duration = self._interval  # the last image has no other; that of the rest follows from their times
            container.mux(packet)

    def _next_tick(self, time: float | None) -> int:
        last = self._ticks
        if time is None:
            self._ticks = 0 if last < 0 else last + round(1 / (USUAL_FPS * TIME_BASE))
        else:
            if self._start is None:
                self._start = time
            self._ticks = max(last + 1, round((time - self._start) / TIME_BASE))
        if last >= 0:
            self._interval = self._ticks - last
        return self._ticks


@functools.cache
def can_write_video() -> bool:
    """Whether what `VideoWriter` needs is installed."""
    try:
        check_video()
    except MissingDependencyError:
        return False
    return True


def check_video() -> None:
    """Check that videos can be written.

    Raises:
        MissingDependencyError: PyAV is not installed, or has no encoder.
    """
    _encoder(require("av", EXTRA))


def _encoder(av: ModuleType) -> _Encoder:
    for encoder in _ENCODERS:
        with contextlib.suppress(ValueError):  # UnknownCodecError
            av.Codec(encoder.name, "w")
            return encoder
    known = " or ".join(encoder.name for encoder in _ENCODERS)
    raise MissingDependencyError(
        f'PyAV is installed without an encoder ({known}); the wheels have one: pip install "rtdetrv4[{EXTRA}]"'
    )
