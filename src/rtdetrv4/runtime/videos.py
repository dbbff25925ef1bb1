"""Video files, cameras and streams, read by OpenCV (docs/adr/0013-video.md)."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

from rtdetrv4.errors import ConfigError, SourceError
from rtdetrv4.runtime.urls import address_of, is_url, reason_of, redacted

logger: logging.Logger = logging.getLogger(__name__)

OPEN_TIMEOUT_S = 10
READ_TIMEOUT_S = 10
"""How long a stream may send nothing until it counts as dropped."""
FIRST_DELAY_S = 1.0
MAX_DELAY_S = 30.0
STABLE_S = 60.0
"""How long a stream must hold for the delays to start anew when it drops; one that does not is opened ever later."""
FEW_MISSING, MISSING_SHARE = 2, 0.1
"""Images, and a share of them, that a file may lack without a word: some files only estimate how many they have."""
RECONNECT = 20
"""Tries to open a dropped stream again, which take eight minutes at least."""

# FFmpeg writes its messages to stderr, and OpenCV asks for this once, when it opens its first video.
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")


class Picture(NamedTuple):
    """An image of a video, camera or stream."""

    image: np.ndarray
    """H×W×3 uint8 RGB."""
    frame_index: int
    """Position in the video, counted from 0."""
    time: float | None
    """Seconds: from the beginning of a file, or since 1970 when a live image came."""
    is_last: bool = False
    """Whether the video ends here, as far as that is known."""


class Capture:
    """An open video file, camera or stream.

    Args:
        target: a file, a camera number or a URL.

    Raises:
        SourceError: it cannot be opened, or has no image.
    """

    def __init__(self, target: str | int) -> None:
        self.name: str = name_of(target)
        with _quiet:
            self._video = _open(target)
            is_read = self._video.grab()
        if not is_read:
            self._video.release()
            raise SourceError(f"{self.name} cannot be read: {_why_not(target)}")
        self._is_first = True
        self._index = -1
        self._fps = self._video.get(cv2.CAP_PROP_FPS)
        self.num_frames: float = self._video.get(cv2.CAP_PROP_FRAME_COUNT)
        """How many a file says it has, which may be an estimate; 0 or less if it does not say."""
        is_endless = is_url(str(target)) and not self.num_frames > 0
        self.is_live: bool = is_endless or is_camera(target)
        """Whether it ends only when it drops."""

    def grab(self) -> bool:
        """Go on to the next image, and return whether there is one."""
        with _quiet if self.is_live else contextlib.nullcontext():  # OpenCV would tell of a drop, too
            is_read = self._is_first or self._video.grab()
        self._is_first = False
        self._index += is_read
        return is_read

    def retrieve(self) -> np.ndarray | None:
        """The image: H×W×3 uint8 RGB; None if it is damaged."""
        is_read, image = self._video.retrieve()
        return cv2.cvtColor(image, cv2.COLOR_BGR2RGB) if is_read else None

    @property
    def seconds(self) -> float | None:
        """The time of the image in its file; None if the file does not say."""
        milliseconds = self._video.get(cv2.CAP_PROP_POS_MSEC)
        if milliseconds > 0 or self._index == 0:
            return round(max(0.0, milliseconds / 1000), 6)
        return round(self._index / self._fps, 6) if self._fps > 0 else None

    def close(self) -> None:
        """Release the device or connection."""
        self._video.release()


def read_file(capture: Capture, every: int = 1) -> Iterator[Picture]:
    """The images of a video, each `every`-th of them; that many are missing is a warning."""
    with contextlib.closing(capture):
        index = -1
        num_damaged = 0
        before: Picture | None = None
        while capture.grab():
            index += 1
            if index % every:
                continue
            seconds = capture.seconds
            image = capture.retrieve()
            if image is None:
                num_damaged += 1
                continue
            if before is not None:
                yield before
            before = Picture(image, index, seconds)
        if before is not None:
            yield before._replace(is_last=True)
        num_read = index + 1 - num_damaged
        if capture.num_frames - num_read > max(FEW_MISSING, MISSING_SHARE * capture.num_frames):
            logger.warning(
                "%s is damaged or cut off: of about %d images, %d could be read",
                *(capture.name, capture.num_frames, num_read),
            )


def read_live(
    target: str | int,
    capture: Capture | None,
    stop: threading.Event,
    *,
    every: int = 1,
    reconnect: int = RECONNECT,
) -> Iterator[Picture]:
    """The images of a camera or stream, which is opened again when it drops.

    Args:
        target: a camera number or URL.
        capture: what was opened; None opens it, as often as `reconnect` says.
        stop: ends the wait for the next try.
        every: each of how many images to return.
        reconnect: how often to try, each time it drops; 0: it ends then.

    Raises:
        SourceError: it cannot be opened again.
    """
    clock = Clock()
    index = -1
    retry = _Retry(name_of(target), reconnect, stop)
    try:
        while not stop.is_set():
            if capture is None:
                capture = retry.open(lambda: Capture(target))
                if capture is None:
                    return
            while not stop.is_set() and capture.grab():
                index += 1
                retry.note_image()
                if index % every:
                    continue
                image = capture.retrieve()
                if image is not None:
                    yield Picture(image, index, clock())
            is_live = capture.is_live
            capture.close()
            capture = None
            if reconnect == 0 or not is_live:
                return
    finally:
        if capture is not None:
            capture.close()


class Clock:
    """Seconds since 1970 that never go back, whatever happens to the computer's clock."""

    def __init__(self) -> None:
        self._offset = time.time() - time.monotonic()

    def __call__(self) -> float:
        """Now."""
        return self._offset + time.monotonic()


class _Retry:
    """Opens a stream again, after delays that double up to a limit, and says so once for each drop."""

    def __init__(self, name: str, reconnect: int, stop: threading.Event) -> None:
        self._name = name
        self._reconnect = reconnect
        self._stop = stop
        self._delay = FIRST_DELAY_S
        self._since: float | None = None  # when it began to send
        self._has_sent = False

    def note_image(self) -> None:
        if self._since is None:
            self._since = time.monotonic()
            if self._has_sent:
                logger.info("%s is back", self._name)
            self._has_sent = True

    def open(self, opened: Callable[[], Capture]) -> Capture | None:
        """The open stream, or None if it is time to stop."""
        if self._since is not None:
            logger.warning(
                "%s sends nothing more; trying to open it again, up to %d times", self._name, self._reconnect
            )
            is_stable = time.monotonic() - self._since > STABLE_S
            self._delay = FIRST_DELAY_S if is_stable else min(2 * self._delay, MAX_DELAY_S)
        self._since = None
        error: SourceError | None = None
        start = time.monotonic()
        tries = max(1, self._reconnect)
        for attempt in range(tries):
            # What was never open is tried at once.
            if (self._has_sent or attempt) and self._stop.wait(self._delay):
                return None
            try:
                return opened()
            except SourceError as failed:
                error = failed
                if not self._has_sent and attempt == 0 and tries > 1:
                    logger.warning("%s; trying again", failed)
            self._delay = min(2 * self._delay, MAX_DELAY_S)
        assert error is not None
        raise SourceError(
            f"{error}; given up after {tries} {'try' if tries == 1 else 'tries'} in {time.monotonic() - start:.0f} s. "
            "--reconnect (reconnect=) sets how many"
        )


def is_camera(target: str | int) -> bool:
    """Whether this is the number of a camera, or the file of its device; no other device, such as /dev/zero."""
    if isinstance(target, int) or is_url(target):
        return isinstance(target, int)
    path = Path(target)
    return path.is_char_device() and path.resolve().name.startswith("video")


def name_of(target: str | int) -> str:
    """What a file, camera or stream is called in results and messages."""
    return f"camera {target}" if isinstance(target, int) else redacted(target)


def check_reading(every: int, reconnect: int) -> None:
    """Check numbers that a user gave.

    Raises:
        ConfigError: one is out of range.
    """
    if not isinstance(every, int | np.integer) or every < 1:
        raise ConfigError(
            f"every: got {every}, expected a whole number, 1 or more: each of how many images to look at."
        )
    if not isinstance(reconnect, int | np.integer) or reconnect < 0:
        raise ConfigError(f"reconnect: got {reconnect}, expected a number of tries, 0 or more.")


def _open(target: str | int) -> cv2.VideoCapture:
    if isinstance(target, str) and is_url(target):
        timeouts = [
            *(cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, OPEN_TIMEOUT_S * 1000),
            *(cv2.CAP_PROP_READ_TIMEOUT_MSEC, READ_TIMEOUT_S * 1000),
        ]
        return cv2.VideoCapture(target, cv2.CAP_FFMPEG, timeouts)
    return cv2.VideoCapture(target)


def _why_not(target: str | int) -> str:
    """Why something cannot be opened, which OpenCV does not tell."""
    if not isinstance(target, str) or not is_url(target):
        return "it cannot be opened, or contains no video that OpenCV can decode"
    address = address_of(target)
    if address is None or target.startswith("udp"):
        return "there is no stream that OpenCV can decode"
    try:
        socket.create_connection(address, timeout=OPEN_TIMEOUT_S / 2).close()
    except OSError as error:
        return f"no connection to {address[0]}, port {address[1]}: {reason_of(error)}"
    return (
        f"{address[0]} answers on port {address[1]}, but gives no video that OpenCV can decode; are the path, the user "
        "name and the password right?"
    )


class _Quiet:
    """Silences OpenCV, which writes several lines to stderr about a video that it cannot open.

    Its level belongs to the process, and several threads may open videos at once: the last one puts it back.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._num_inside = 0
        self._level = 0

    def __enter__(self) -> None:
        with self._lock:
            if self._num_inside == 0:
                self._level = _settings().setLogLevel(0)
            self._num_inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._num_inside -= 1
            if self._num_inside == 0:
                _settings().setLogLevel(self._level)


def _settings() -> Any:
    return getattr(cv2.utils, "logging", cv2)  # OpenCV 4 has these at the top level


_quiet = _Quiet()
