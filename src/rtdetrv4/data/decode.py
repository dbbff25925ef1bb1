"""Decoding image files into RGB arrays no larger than needed."""

from __future__ import annotations

import contextlib
import importlib
import io
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from rtdetrv4.errors import DatasetError
from rtdetrv4.input_files import open_file, read_file
from rtdetrv4.runtime.pixels import (
    JPEG_MAGIC,
    MAX_FILE_BYTES,
    PNG_MAGIC,
    PixelsError,
    check_scans,
    check_size,
    decode_stored,
    has_whole_chunks,
    read_header,
    turn,
)

_simplejpeg: Any = None
"""None in the base install, where Pillow reads JPEG files: as the same pixels, more slowly."""
with contextlib.suppress(ModuleNotFoundError):
    _simplejpeg = importlib.import_module("simplejpeg")

EXIF_MAGIC = b"Exif\x00\x00"
XMP_ORIENTATION = b"tiff:Orientation"
MAX_REDUCTION = 8
ASPECT_TOLERANCE = 0.01


def read_image(path: Path, size_hw: tuple[int, int], scale: float = 1.0) -> NDArray[np.uint8]:
    """Read an image of any kind as an upright 8-bit RGB array; `rtdetrv4.runtime.pixels` has the rules.

    The array shows the whole image, perhaps at a lower resolution: its sides are halved up to three times while they
    stay at least `scale` times the original. JPEG files are decoded at that size directly, which is faster and averages
    pixels as well.

    Args:
        path: the file.
        size_hw: the image size that the annotations assume. A file of another size but the same aspect ratio counts as
            a resized copy, which boxes relative to `size_hw` fit as well.
        scale: the resolution needed, as a fraction of the original; 1 or more reads every pixel.

    Raises:
        DatasetError: the file is missing or damaged, larger than the memory, or its aspect ratio is not that of
            `size_hw`.
    """
    try:
        data = read_file(path, MAX_FILE_BYTES)
    except OSError as error:
        raise DatasetError(f"{path} cannot be read: {error.strerror}") from error

    try:
        image, full_hw, orientation = decode_reduced(data, reduction_for(scale))
    except PixelsError as error:
        raise DatasetError(f"{path} {error}") from error

    # Annotation tools disagree about EXIF: browsers rotate a photo before anyone draws a box, scripts that read files
    # with PIL do not. The annotated size decides: a photo is left as stored only if its boxes were drawn that way.
    # Where the size cannot tell (square images, half turns), the photo is rotated, as every viewer does.
    if orientation >= 5 and full_hw == size_hw and full_hw[0] != full_hw[1]:
        orientation = 1
    upright = turn(image, orientation)
    height, width = full_hw if orientation < 5 else full_hw[::-1]
    if not same_aspect((height, width), size_hw):
        raise DatasetError(
            f"{path} is {width}×{height} pixels, but its annotations are for {size_hw[1]}×{size_hw[0]}; "
            "correct width and height in the annotations"
        )
    return np.ascontiguousarray(upright)


def same_aspect(first_hw: tuple[int, int], second_hw: tuple[int, int]) -> bool:
    """Whether two sizes may belong to copies of one image; resizing rounds."""
    return abs(first_hw[0] * second_hw[1] / (first_hw[1] * second_hw[0]) - 1) <= ASPECT_TOLERANCE


def read_size(path: Path, annotated_hw: tuple[int, int] | None = None) -> tuple[int, int]:
    """Read the height and width that an image has when upright, from the header of its file.

    Args:
        path: the file.
        annotated_hw: the image size that the annotations assume; returned if the file is stored like that, because
            `read_image` then leaves it so.

    Raises:
        DatasetError: the file is missing or not an image.
    """
    try:
        with open_file(path) as file:
            (height, width), orientation = read_header(file)
    except OSError as error:
        raise DatasetError(f"{path} cannot be read: {error.strerror}") from error
    except PixelsError as error:
        raise DatasetError(f"{path} {error}") from error
    lies = orientation >= 5 and (height, width) != annotated_hw
    return (width, height) if lies else (height, width)


def reduction_for(scale: float) -> int:
    """The factor by which `read_image` reduces an image that is needed at `scale`: 1, 2, 4 or 8."""
    reduction = 1
    while reduction < MAX_REDUCTION and reduction * 2 * scale <= 1:
        reduction *= 2
    return reduction


def decode_reduced(data: bytes, reduction: int) -> tuple[NDArray[np.uint8], tuple[int, int], int]:
    """Decode an image file without turning it.

    Args:
        data: the content of the file.
        reduction: 1, 2, 4 or 8.

    Returns:
        The pixels as stored, H×W×3 at 1/`reduction` of the resolution, the full size (h, w) and the orientation.

    Raises:
        PixelsError: the file is not an image, damaged, too large, or of a kind that cannot be read.
    """
    check_scans(data)
    if _simplejpeg is not None and data.startswith(JPEG_MAGIC):
        # Pillow tells what is wrong, and reads odd files, such as those with bytes after the end.
        with contextlib.suppress(ValueError, MemoryError):
            header = _simplejpeg.decode_jpeg_header(data)
            height, width, colorspace = int(header[0]), int(header[1]), header[2]
            check_size(height, width, len(data))
            if colorspace not in {"CMYK", "YCCK"}:
                min_height, min_width = -(-height // reduction), -(-width // reduction)
                pixels = _simplejpeg.decode_jpeg(data, min_height=min_height, min_width=min_width)
                return pixels, (height, width), _jpeg_orientation(data)
    pixels, orientation = _decode_png(data) or decode_stored(data)
    height, width = pixels.shape[:2]
    if reduction > 1:
        small = (-(-width // reduction), -(-height // reduction))
        pixels = cv2.resize(pixels, small, interpolation=cv2.INTER_AREA)
    return pixels, (height, width), orientation  # pyright: ignore[reportReturnType]


def _jpeg_orientation(data: bytes) -> int:
    """The orientation of a JPEG file, of which most have none and need not be parsed."""
    is_marked = any(mark in data[:65536] for mark in (EXIF_MAGIC, XMP_ORIENTATION))
    return read_header(io.BytesIO(data))[1] if is_marked else 1


def _decode_png(data: bytes) -> tuple[np.ndarray, int] | None:
    """What `decode_stored` returns, twice as fast, for PNG files of 8 bits; None for others and damaged ones."""
    if not data.startswith(PNG_MAGIC) or data[24:25] != b"\x08" or not has_whole_chunks(data):
        return None
    check_size(int.from_bytes(data[20:24], "big"), int.from_bytes(data[16:20], "big"), len(data))
    with contextlib.suppress(cv2.error):
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
        if pixels is not None:
            return cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB), read_header(io.BytesIO(data))[1]
    return None
