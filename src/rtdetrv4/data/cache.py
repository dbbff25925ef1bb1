"""A cache of decoded images, in memory or on disk, so that later epochs need not decode them again.

It holds what `read_image` returned, separately for each reduction, so samples are bit-identical with and without a
cache. Images that do not fit are decoded every time.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import mmap
import multiprocessing
import sys
import uuid
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, Protocol

import cv2
import numpy as np
import PIL
import simplejpeg
from numpy.typing import NDArray

from rtdetrv4.data.arrays import read_array
from rtdetrv4.data.decode import MAX_REDUCTION
from rtdetrv4.data.records import Split
from rtdetrv4.errors import ConfigError
from rtdetrv4.input_files import size_text
from rtdetrv4.outputs import caches_folder

CAN_FORK = sys.platform == "linux"
"""On other systems processes are spawned, and inherit no memory."""
NUM_REDUCTIONS = MAX_REDUCTION.bit_length()
DECODERS = (version("rtdetrv4"), cv2.__version__, PIL.__version__, simplejpeg.__version__)
"""The versions of everything that decodes: another version may produce other pixels from the same file."""
NPY_HEADER_BYTES = 128

logger: logging.Logger = logging.getLogger(__name__)


class ImageCache(Protocol):
    """A store of pixels by image and reduction, shared by several processes."""

    budget: Budget

    def read(self, index: int, reduction: int, decode: Callable[[], NDArray[np.uint8]]) -> NDArray[np.uint8]:
        """Return the pixels of image `index` at 1/`reduction` of its resolution.

        Cached pixels are read-only. If there are none, `decode` is called and its result is cached if there is room.
        """
        ...


class Budget:
    """A number of bytes that several processes allocate from.

    Args:
        limit: the number of bytes.
        used: how many of them are in use already.
        num_held: how many images these hold; every resolution counts.
        context: the start method of the processes.
    """

    def __init__(self, limit: int, used: int, num_held: int, context: Any = multiprocessing) -> None:
        self.limit = limit
        self._state = context.Array("q", [used, num_held, 0])
        self.lock: Any = self._state.get_lock()

    @property
    def used(self) -> int:
        """Bytes in use by all processes."""
        return self._state[0]

    def take(self, num_bytes: int) -> int | None:
        """Allocate the bytes of an image; return how many were in use before, or None if they do not fit."""
        with self.lock:
            used, num_held, is_reported = self._state[:]
            if used + num_bytes <= self.limit:
                self._state[:] = [used + num_bytes, num_held + 1, is_reported]
                return used
            self._state[2] = 1
        if not is_reported:
            logger.info(
                "The image cache is full (%s, %d images); others are decoded every time.", size_text(used), num_held
            )
        return None

    def release(self, num_bytes: int) -> None:
        """Free the bytes of one image."""
        with self.lock:
            self._state[0] -= num_bytes
            self._state[1] -= 1


class RamCache:
    """A cache in memory, which the workers share because they are forked after it was created.

    Anonymous memory, unlike /dev/shm, has no separate limit in a container, and is committed only as it is filled.

    Args:
        num_images: the number of images in the split.
        max_bytes: the most bytes of pixels to hold.

    Raises:
        ConfigError: the memory cannot be allocated.
    """

    def __init__(self, num_images: int, max_bytes: int) -> None:
        self.budget: Budget = Budget(max_bytes, 0, 0, multiprocessing.get_context("fork" if CAN_FORK else None))
        try:
            self._pixels = mmap.mmap(-1, max_bytes or 1)
            table = mmap.mmap(-1, 8 * num_images * NUM_REDUCTIONS * 3)
        except (OSError, OverflowError) as error:
            raise ConfigError(
                f"{size_text(max_bytes)} of memory for images cannot be allocated ({error}); "
                "set a smaller data.cache_size, or data.cache=disk."
            ) from error
        # Start of the pixels, height, width. All zero: not cached. Width without height: being written.
        self._places = np.frombuffer(table, np.int64).reshape(num_images, NUM_REDUCTIONS, 3)

    def read(self, index: int, reduction: int, decode: Callable[[], NDArray[np.uint8]]) -> NDArray[np.uint8]:
        """See `ImageCache`."""
        place = self._places[index, reduction.bit_length() - 1]
        with self.budget.lock:  # also makes the pixels visible to other processors before their place
            start, height, width = place.tolist()
        if height:
            held = np.frombuffer(self._pixels, np.uint8, 3 * height * width, start).reshape(height, width, 3)
            held.flags.writeable = False
            return held
        image = decode()
        with self.budget.lock:
            if place[2] or (start := self.budget.take(image.nbytes)) is None:
                return image
            place[:] = start, 0, image.shape[1]
        np.frombuffer(self._pixels, np.uint8, image.nbytes, start)[:] = image.reshape(-1)
        with self.budget.lock:
            place[1] = image.shape[0]
        return image


class DiskCache:
    """A cache on disk, which serves later runs too: a folder per image with one .npy file per resolution.

    The name of a file is a digest of everything its pixels depend on, so a changed image or another version of a
    decoder leads to another file. Outdated and damaged files are deleted when their image is decoded again; until then
    they count against `max_bytes`.

    Args:
        split: the images.
        folder: created if missing. Anything in it may be deleted at any time.
        max_bytes: the most bytes that all files in it may take.
        ranks: how many processes fill it at the same time; each gets its share of the remaining room.

    Raises:
        ConfigError: the folder cannot be created or read.
    """

    def __init__(self, split: Split, folder: Path, max_bytes: int, ranks: int = 1) -> None:
        self._split = split
        self._folder = folder
        self._is_writable = True
        sizes: list[int] = []
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for file in folder.glob("*/*"):
                with contextlib.suppress(FileNotFoundError):  # another process may have renamed it just now
                    sizes.append(file.stat().st_size)
        except OSError as error:
            raise ConfigError(
                f"{folder} cannot hold the image cache ({error.strerror}); "
                "set XDG_CACHE_HOME to a folder for caches, or data.cache=none."
            ) from error
        room = max(max_bytes - sum(sizes), 0) // ranks
        self.budget: Budget = Budget(sum(sizes) + room, sum(sizes), len(sizes))

    def read(self, index: int, reduction: int, decode: Callable[[], NDArray[np.uint8]]) -> NDArray[np.uint8]:
        """See `ImageCache`."""
        info = self._split.records[index].info
        try:
            source = (self._split.image_dir / info.file_name).stat()
        except OSError:
            return decode()  # raises the error that a run without a cache raises
        folder = self._folder / _digest(info.file_name, info.height, info.width)
        path = folder / f"{reduction}-{_digest(source.st_size, source.st_mtime_ns, DECODERS)}.npy"
        if (held := self._held(path)) is not None:
            return held
        for outdated in folder.glob(f"{reduction}-*.npy"):
            with contextlib.suppress(OSError):  # another process was faster
                num_bytes = outdated.stat().st_size
                outdated.unlink()
                self.budget.release(num_bytes)
        image = decode()
        self._save(path, image)
        return image

    def _held(self, path: Path) -> NDArray[np.uint8] | None:
        """The pixels in a file of the cache; None if there is none, or a damaged one."""
        try:
            held = read_array(path, np.uint8)
        except FileNotFoundError:
            return None
        except (OSError, ValueError):
            held = None
        if held is not None and held.ndim == 3 and held.shape[2] == 3 and held.size:
            return held
        logger.warning("%s in the image cache is damaged; the image is decoded again.", path)
        return None

    def _save(self, path: Path, image: NDArray[np.uint8]) -> None:
        num_bytes = NPY_HEADER_BYTES + image.nbytes
        if not self._is_writable or self.budget.take(num_bytes) is None:
            return
        # Renamed once it is complete, so that no process ever reads half a file.
        temporary = path.with_name(f"{uuid.uuid4().hex}.tmp")
        try:
            path.parent.mkdir(exist_ok=True)
            with temporary.open("wb") as file:
                np.save(file, image)
            temporary.replace(path)
        except OSError as error:
            self._is_writable = False
            self.budget.release(num_bytes)
            logger.warning("%s takes no more images (%s); they are decoded every time.", self._folder, error.strerror)
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink()


def _digest(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:32]


def open_cache(
    kind: Literal["ram", "disk"], split: Split, max_bytes: int, *, workers: int = 0, ranks: int = 1
) -> ImageCache | None:
    """Create the cache for the images of a split; None, with a warning, if this system cannot have one.

    Args:
        kind: "ram" lasts as long as the object, "disk" until it is deleted.
        split: the images.
        max_bytes: the limit for all caches of this split on this machine.
        workers: the number of worker processes of the loader.
        ranks: the number of processes on this machine that have a cache for this split.

    Raises:
        ConfigError: there is too little memory, or the folder cannot be written.
    """
    if kind == "disk":
        return DiskCache(split, cache_folder(split.image_dir), max_bytes, ranks)
    if workers and not CAN_FORK:
        logger.warning("data.cache=ram is ignored: workers cannot share memory on this system. Use data.cache=disk.")
        return None
    return RamCache(len(split.records), max_bytes // ranks)


def cache_folder(image_dir: Path) -> Path:
    """The folder of the disk cache for a folder of images."""
    digest = hashlib.sha256(str(image_dir.resolve()).encode()).hexdigest()
    return caches_folder() / "images" / digest[:16]


def describe(cache: ImageCache, split: Split) -> str:
    """A sentence for the log: what a cache holds, and how many images fit."""
    count = len(split.records)
    infos = [record.info for record in split.records[:: count // 1000 + 1]]
    mean = 3 * sum(info.height * info.width for info in infos) / len(infos)
    fitting = min(int(cache.budget.limit / mean), count)
    return (
        f"{size_text(cache.budget.used)} held of {size_text(cache.budget.limit)}, "
        f"room for about {fitting} of {count} images at full size"
    )
