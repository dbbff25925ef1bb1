"""What one look at an image file tells: it is decoded once, as small as will do, and only numbers are kept."""

from __future__ import annotations

import contextlib
import hashlib
import io
import math
import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from rtdetrv4.data.decode import JPEG_MAGIC, decode_reduced, reduction_for
from rtdetrv4.input_files import read_file
from rtdetrv4.runtime.pixels import EXIF_ORIENTATION, MAX_FILE_BYTES, PNG_MAGIC, PixelsError, open_image, turn

SIDE = 256
"""The images are compared at this height and width."""
MAX_THREADS = 4
"""Decoding is what takes time, and it does not hold Python's lock."""
_CHUNK = 256
"""Images that are handed to the threads at a time."""
_LARGE_PIXELS = 2**26
"""Images of more pixels are decoded one at a time, because each takes hundreds of megabytes."""
_MAX_PAGES = 1000
_COUNTED_BYTES = 2**24
_one_at_a_time = threading.Lock()


class ImageFacts(NamedTuple):
    """What one look at an image file told."""

    path: Path
    num_bytes: int
    size_hw: tuple[int, int]
    """As stored, before the orientation tag is followed; (0, 0) if the file is no image."""
    mode: str
    """Pillow's name of the pixel type, such as RGB, L or CMYK, with ";16" if it has 16 bits; "" if the file is no
    image."""
    format: str
    """Pillow's name of the file format, such as JPEG; "" if the file is no image."""
    num_frames: int
    """Pictures in the file: animations and documents have several. The pages of TIFF files are counted up to 1000, and
    animations of more than 16 MB have 2."""
    orientation: int
    """The value of the orientation tag, which may be invalid; 1 without one."""
    digest: bytes
    """BLAKE2b of the bytes: files with equal digests are copies."""
    dhash: int
    """64 bits: whether each of 8×8 cells of the upright image is darker than the one to its right. Images that look
    alike differ in few bits. 0 if the image cannot be decoded."""
    brightness: float
    """The mean gray value, 0 to 255; NaN if the image cannot be decoded."""
    blur: float
    """The variance of the Laplacian of the image scaled to 256×256 gray pixels: low if it is blurred; NaN if the image
    cannot be decoded."""
    problem: str | None
    """Why the image cannot be decoded; None if it can."""


def look(path: Path) -> ImageFacts:
    """Read an image file, and decode it as training does.

    Args:
        path: the file, which may be damaged or no image at all.
    """
    facts = ImageFacts(path, 0, (0, 0), "", "", 1, 1, b"", 0, math.nan, math.nan, None)
    try:
        data = read_file(path, MAX_FILE_BYTES)
    except OSError as error:
        return facts._replace(problem=f"cannot be read: {error.strerror}")
    facts = facts._replace(num_bytes=len(data), digest=hashlib.blake2b(data, digest_size=16).digest())
    if not data:
        return facts._replace(problem="is empty")
    try:
        with open_image(io.BytesIO(data)) as image:
            width, height = image.size
            facts = facts._replace(
                size_hw=(height, width),
                mode=_mode(image, data),
                format=image.format or "",
                num_frames=_num_frames(image, len(data)),
                orientation=_orientation_tag(image),
            )
        with _one_at_a_time if width * height > _LARGE_PIXELS else contextlib.nullcontext():
            reduction = reduction_for(SIDE / min(height, width)) if data.startswith(JPEG_MAGIC) else 1
            pixels, size_hw, orientation = decode_reduced(data, reduction)
    except PixelsError as error:
        return facts._replace(problem=str(error))
    gray = cv2.resize(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    return facts._replace(
        size_hw=size_hw,
        dhash=_dhash(turn(gray[..., None], orientation)),
        brightness=float(gray.mean()),
        blur=float(cv2.Laplacian(gray, cv2.CV_32F).var()),
    )


def look_at_all(paths: Sequence[Path]) -> Iterator[ImageFacts]:
    """Look at many files, in their order, in a few threads."""
    pool = ThreadPoolExecutor(min(MAX_THREADS, os.cpu_count() or 1))
    try:
        for start in range(0, len(paths), _CHUNK):
            yield from pool.map(look, paths[start : start + _CHUNK])
    finally:
        pool.shutdown(cancel_futures=True)


def _mode(image: Image.Image, data: bytes) -> str:
    # Of 16-bit PNG files in color, Pillow shows 8 bits.
    is_reduced = data.startswith(PNG_MAGIC) and data[24:25] == b"\x10" and not image.mode.startswith("I")
    return f"{image.mode};16" if is_reduced else image.mode


def _num_frames(image: Image.Image, num_bytes: int) -> int:
    if image.format == "MPO":  # a photo with a preview, or one for each eye
        return 1
    try:
        if image.format == "TIFF":  # where counting takes the square of the number
            return _num_pages(image)
        if not getattr(image, "is_animated", False):
            return 1
        return int(getattr(image, "n_frames", 1)) if num_bytes <= _COUNTED_BYTES else 2
    except Exception:  # counting reads the whole file, and what Pillow raises depends on how it is damaged
        return 1


def _num_pages(image: Image.Image) -> int:
    """The pictures of a file, up to `_MAX_PAGES`; the first is the current one again."""
    for number in range(1, _MAX_PAGES):
        try:
            image.seek(number)
        except EOFError:
            break
    else:
        number = _MAX_PAGES
    image.seek(0)
    return number


def _orientation_tag(image: Image.Image) -> int:
    try:
        value = Image.Image.getexif(image).get(EXIF_ORIENTATION, 1)
    except Exception:  # a damaged block can fail in any way, and the pixels are worth more than it
        return 1
    return value if isinstance(value, int) else 0


def _dhash(gray: NDArray[np.uint8]) -> int:
    cells = cv2.resize(np.ascontiguousarray(gray[..., 0]), (9, 8), interpolation=cv2.INTER_AREA)
    return int.from_bytes(np.packbits(cells[:, :-1] < cells[:, 1:]).tobytes(), "big")
