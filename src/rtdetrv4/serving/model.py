"""A model that is served: from the bytes of an image to what is found in it."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from functools import cached_property
from typing import Any, Literal, NamedTuple

import cv2
import numpy as np
from PIL import Image

from rtdetrv4.errors import ConfigError
from rtdetrv4.runtime import Detections, Frame
from rtdetrv4.runtime.detect import detect
from rtdetrv4.runtime.detections import MAX_JPEG_SIDE
from rtdetrv4.runtime.machine import num_cores
from rtdetrv4.runtime.pixels import MAX_SCANS, PixelsError, TooManyPixelsError, check_scans, decode_image, stored_size
from rtdetrv4.runtime.preprocess import fit
from rtdetrv4.runtime.selection import NUM_LISTED, Selection, class_indices
from rtdetrv4.runtime.slicing import Slicing, num_tiles
from rtdetrv4.serving.batching import Batcher, BatchSettings, Place
from rtdetrv4.serving.budget import Budget
from rtdetrv4.serving.limits import Limits
from rtdetrv4.serving.network import Network
from rtdetrv4.serving.refusals import RefusedError, busy, late

logger: logging.Logger = logging.getLogger(__name__)

KINDS = ("AVIF", "BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")
"""What strangers may send. Pillow reads more: PostScript, by starting an interpreter of it, and formats that nobody
tries to break, because nobody uses them."""
JPEG_QUALITY = 90

Picture = Literal["jpeg", "png"]


class Wish(NamedTuple):
    """What a request wants of a model."""

    selection: Selection
    slicing: Slicing | None = None
    picture: Picture | None = None
    """The picture with boxes, in this format, in place of a list of them."""


class Times(NamedTuple):
    """Where the seconds of an image went."""

    decode_s: float
    wait_s: float
    """In the queue, of all its tiles."""
    run_s: float
    """In the network, with all others of its batches."""


class Found(NamedTuple):
    """The objects in an image."""

    height: int
    width: int
    objects: list[dict[str, Any]]
    """As `Detections.to_dicts`."""
    times: Times
    picture: bytes | None = None


class Job:
    """An image on its way."""

    def __init__(self, deadline: float) -> None:
        self.deadline = deadline
        self.found: Future[Found] = Future()
        self._run: Future[Any] | None = None
        self._is_abandoned = False
        self._lock = threading.Lock()

    def abandon(self) -> None:
        """Nobody waits for it any more: what has not begun is not done."""
        self.found.cancel()
        with self._lock:
            self._is_abandoned = True
            if self._run is not None:
                self._run.cancel()

    def check(self) -> None:
        """Raise if there is no point in going on: a `RefusedError`, or a `CancelledError` that nobody sees."""
        if self._is_abandoned:
            raise CancelledError
        if time.monotonic() > self.deadline:
            raise late()

    def wait(self, run: Future[Any]) -> Any:
        """The result of a run of the network; being abandoned ends the waiting."""
        with self._lock:
            self._run = run
            if self._is_abandoned:
                run.cancel()
        return run.result()


class ServedModel:
    """A network with its queue, and the threads that decode what it gets and sort what it gives.

    Args:
        name: what requests call it.
        network: the loaded model.
        settings: how requests are joined.
        limits: what may be sent.
        pixels: the pixels that may be decoded at once, shared by all models.
        observe: called after every run of the network with its number of images and seconds.
    """

    def __init__(
        self,
        name: str,
        network: Network,
        settings: BatchSettings,
        limits: Limits,
        pixels: Budget,
        observe: Callable[[int, float], None] | None = None,
    ) -> None:
        self.name = name
        self.network = network
        self._limits = limits
        self._pixels = pixels
        self.batcher: Batcher = Batcher(
            network.run,
            settings,
            sizes=network.sizes or range(1, settings.max_batch + 1),
            num_workers=network.num_parallel,
            observe=observe,
        )
        # A full batch in every worker, the next ones on their way, and as many pictures drawn as there are cores.
        num_threads = 2 * self.batcher.max_batch * network.num_parallel + num_cores()
        self._pool = ThreadPoolExecutor(min(num_threads, settings.max_queue), thread_name_prefix=f"job-{name}")

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Class names."""
        return self.network.classes.names

    def start(self, images: Sequence[bytes], wish: Wish, deadline: float) -> list[Job]:
        """Begin to detect objects.

        Args:
            images: image files.
            wish: what is wanted.
            deadline: when nobody waits any more, as of `time.monotonic`.

        Returns:
            A job for each image, whose future has a `Found`, or a `RefusedError`.

        Raises:
            RefusedError: there is no room for so many images, or the server stops.
        """
        jobs = [Job(deadline) for _ in images]
        for job, place, data in zip(jobs, self.batcher.reserve(len(images)), images, strict=True):
            self._pool.submit(self._do, job, place, data, wish)
        return jobs

    def refuse(self) -> None:
        """Refuse what comes from now on."""
        self.batcher.refuse()

    def close(self) -> None:
        """Refuse what comes from now on, and finish what was taken."""
        self.refuse()
        self._pool.shutdown()
        self.batcher.close()

    def _do(self, job: Job, place: Place, data: bytes, wish: Wish) -> None:
        try:
            if not job.found.set_running_or_notify_cancel():
                return
            job.check()
            job.found.set_result(self._find(job, place, data, wish))
        except Exception as error:  # whatever it is, someone waits for an answer
            job.found.set_exception(error)
        finally:
            place.leave()

    def _find(self, job: Job, place: Place, data: bytes, wish: Wish) -> Found:
        start = time.monotonic()
        height, width = self._check(data, wish)
        if not self._pixels.take(height * width, job.deadline):
            raise busy("too many large images are being decoded")
        try:
            image = _decode(data)
            decode_s = time.monotonic() - start
            wait_s = run_s = 0.0

            def run(images: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
                nonlocal wait_s, run_s
                job.check()
                fitted = [fit(each, self.network.size_hw, self.network.resize) for each in images]
                output = job.wait(place.submit(fitted, job.deadline))
                wait_s += output.waited_s
                run_s += output.ran_s
                return output.scores, output.labels, output.boxes

            (found,) = detect(
                iter([Frame(image, None, 0)]),
                run,
                classes=self.network.classes,
                size_hw=self.network.size_hw,
                mode=self.network.resize,
                batch=self.batcher.max_batch,
                selection=wish.selection,
                slicing=wish.slicing,
                training_hw=self.network.training_hw,
            )
            place.leave()  # what follows needs no network
            picture = None if wish.picture is None else _encode(found, wish.picture)
            height, width = image.shape[:2]
            return Found(height, width, found.to_dicts(), Times(decode_s, wait_s, run_s), picture)
        finally:
            self._pixels.give(height * width)

    def _check(self, data: bytes, wish: Wish) -> tuple[int, int]:
        """The size of an image as it is stored, if it may be decoded."""
        try:
            check_scans(data)
        except PixelsError:
            raise RefusedError(
                422, "too_many_scans", f"the image has more than {MAX_SCANS} scans; save it as a baseline JPEG"
            ) from None
        if _is_run_length_bmp(data):
            raise _unreadable(PixelsError("is a BMP file with run-length coding; save it as PNG"))
        try:
            height, width = stored_size(data, kinds=_kinds(), max_pixels=self._limits.pixels)
        except TooManyPixelsError as error:
            raise RefusedError(
                413, "too_many_pixels", f"the image {error}", expected=f"at most {self._limits.pixels} pixels"
            ) from None
        except PixelsError as error:
            raise _unreadable(error) from None
        # Turned upright, its sides are exchanged.
        count = max(num_tiles((height, width), wish.slicing), num_tiles((width, height), wish.slicing))
        if count > self._limits.tiles:
            raise RefusedError(
                413,
                "too_many_tiles",
                "slice: the image would be cut into too many tiles; use larger ones",
                got=f"{count} tiles",
                expected=f"at most {self._limits.tiles} tiles",
            )
        return height, width


def wish_of(
    network: Network,
    *,
    conf: float | str,
    classes: Sequence[str],
    max_det: int | None,
    duplicates: Literal["drop", "keep"],
    slice: str | None,
    overlap: float,
    whole: bool,
    picture: Picture | None,
) -> Wish:
    """What the options of a request mean for a model.

    Args:
        network: the model.
        conf: minimum confidence, or "best".
        classes: names or indices of classes to return; none: all.
        max_det: the most objects per image.
        duplicates: see `Selection`.
        slice: side of a tile in pixels, or HEIGHTxWIDTH; None: no tiles.
        overlap: the share of a tile that its neighbor shows too.
        whole: with tiles, whether to detect in the whole image as well.
        picture: see `Wish.picture`.

    Raises:
        RefusedError: an option is invalid, or names a class that the model does not have.
    """
    names = network.classes.names
    wanted = [int(name) if name not in names and name.isdecimal() and len(name) < 10 else name for name in classes]
    for given in wanted:
        try:
            class_indices(given, names)
        except ConfigError as error:
            more = f", … (0 to {len(names) - 1})" if len(names) > NUM_LISTED else ""
            raise RefusedError(
                422,
                "invalid_option",
                str(error),
                got=str(given)[:100],
                expected=", ".join(names[:NUM_LISTED]) + more,
            ) from None
    try:
        selection = Selection(
            names,
            conf=conf,  # pyright: ignore[reportArgumentType]  # checked there
            best=network.thresholds,
            classes=wanted or None,
            max_det=max_det,
            duplicates=duplicates,
        )
        return Wish(selection, Slicing.of(slice, overlap, whole), picture)
    except ConfigError as error:
        raise RefusedError(422, "invalid_option", str(error)) from None


def _is_run_length_bmp(data: bytes) -> bool:
    """Whether a file is a BMP whose rows are compressed: Pillow fills them pixel by pixel, in Python."""
    return data.startswith(b"BM") and data[14:18] >= b"\x28" and data[30:34] in (b"\1\0\0\0", b"\2\0\0\0")


def _kinds() -> tuple[str, ...]:
    """Those of `KINDS` that this Pillow reads."""
    Image.init()
    return tuple(kind for kind in KINDS if kind in Image.OPEN)


def _decode(data: bytes) -> np.ndarray:
    try:
        return decode_image(data, kinds=_kinds())
    except PixelsError as error:
        raise _unreadable(error) from None


def _unreadable(error: PixelsError) -> RefusedError:
    return RefusedError(422, "unreadable_image", f"the image {error}", expected=f"a whole file: {', '.join(KINDS)}")


def _encode(found: Detections, picture: Picture) -> bytes:
    """The image with its boxes, as a file."""
    drawn = cv2.cvtColor(found.plot(), cv2.COLOR_RGB2BGR)
    if picture == "jpeg" and max(drawn.shape) > MAX_JPEG_SIDE:
        raise RefusedError(
            422,
            "picture_too_long",
            "format: JPEG files end at a certain side; ask for png",
            got=f"{drawn.shape[1]}×{drawn.shape[0]} pixels",
            expected=f"at most {MAX_JPEG_SIDE} pixels a side",
        )
    options = [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY] if picture == "jpeg" else []
    return cv2.imencode(f".{picture}", drawn, options)[1].tobytes()
