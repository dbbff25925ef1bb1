"""Decoding image files into RGB arrays no larger than needed."""

from __future__ import annotations

import contextlib
import io
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import cv2
import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

from rtdetrv4.errors import DatasetError

JPEG_MAGIC = b"\xff\xd8"
PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
TIFF_MAGICS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
EXIF_MAGIC = b"Exif\x00\x00"
EXIF_ORIENTATION = 0x0112
XMP_ORIENTATION = b"tiff:Orientation"
MAX_REDUCTION = 8
ASPECT_TOLERANCE = 0.01
PIL_ERRORS = (OSError, ValueError, SyntaxError, EOFError, OverflowError, struct.error)

_BACKWARDS = {6: 8, 8: 6}
"""The orientation that undoes another; the others undo themselves."""


def read_image(path: Path, size_hw: tuple[int, int], scale: float = 1.0) -> NDArray[np.uint8]:
    """Read an image of any common kind (gray, palette, alpha, CMYK, 16 bit) as an upright 8-bit RGB array.

    Alpha is ignored, as by PIL's `convert("RGB")`; 16 bits are divided by 257, so that white stays white.

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
        data = path.read_bytes()
    except OSError as error:
        raise DatasetError(f"{path} cannot be read: {error.strerror}") from error

    try:
        image, full_hw = _decode(data, reduction_for(scale))
    except MemoryError as error:
        raise DatasetError(
            f"{path} does not fit in memory ({size_hw[1]}×{size_hw[0]} pixels); cut it into tiles, or scale it down"
        ) from error
    except PIL_ERRORS as error:
        raise DatasetError(f"{path} is damaged or not an image: {error}") from error

    # Annotation tools disagree about EXIF: browsers rotate a photo before anyone draws a box, scripts that read files
    # with PIL do not. The annotated size decides: a photo is left as stored only if its boxes were drawn that way.
    # Where the size cannot tell (square images, half turns), the photo is rotated, as every viewer does.
    orientation = _exif_orientation(data)
    if orientation >= 5 and full_hw == size_hw and full_hw[0] != full_hw[1]:
        orientation = 1
    upright = _turn(image, orientation)
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
        with _any_size(), path.open("rb") as file, Image.open(file) as image:
            width, height = image.size
            lies = _orientation(image, file) >= 5
            if image.format == "TIFF" and lies:  # PIL gives the size after turning
                width, height = height, width
            if (height, width) == annotated_hw or not lies:
                return height, width
            return width, height
    except PIL_ERRORS as error:
        raise DatasetError(f"{path} is damaged or not an image: {error}") from error


def reduction_for(scale: float) -> int:
    """The factor by which `read_image` reduces an image that is needed at `scale`: 1, 2, 4 or 8."""
    reduction = 1
    while reduction < MAX_REDUCTION and reduction * 2 * scale <= 1:
        reduction *= 2
    return reduction


def _decode(data: bytes, reduction: int) -> tuple[NDArray[np.uint8], tuple[int, int]]:
    """The pixels, H×W×3 at 1/`reduction` of the resolution, and the full size (h, w)."""
    if data.startswith(JPEG_MAGIC):
        try:
            header = simplejpeg.decode_jpeg_header(data)
            height, width, colorspace = int(header[0]), int(header[1]), header[2]
            if colorspace not in {"CMYK", "YCCK"}:
                min_height, min_width = -(-height // reduction), -(-width // reduction)
                pixels = simplejpeg.decode_jpeg(data, min_height=min_height, min_width=min_width)
                return pixels, (height, width)
        except ValueError:  # PIL refuses damaged files, but reads odd ones, such as those with bytes after the end
            pass
    pixels = None if data.startswith((JPEG_MAGIC, *TIFF_MAGICS)) else _decode_opencv(data)
    if pixels is None:
        with _any_size(), Image.open(io.BytesIO(data)) as image:
            orientation = _orientation(image, io.BytesIO(data)) if image.format == "TIFF" else 1
            # PIL turns TIFF files by itself, and no other kind. Turned back, all kinds are as stored.
            pixels = _turn(_rgb(image), _BACKWARDS.get(orientation, orientation))
    height, width = pixels.shape[:2]
    if reduction > 1:
        small = (-(-width // reduction), -(-height // reduction))
        pixels = cv2.resize(pixels, small, interpolation=cv2.INTER_AREA)
    return pixels, (height, width)  # pyright: ignore[reportReturnType]


def _decode_opencv(data: bytes) -> NDArray[np.uint8] | None:
    """The pixels of PNG, BMP and WebP files (16 bits reduced to 8), or None if OpenCV cannot read them.

    TIFF files are left to PIL: OpenCV darkens those with alpha, and writes warnings about those with floats.
    """
    if not data:
        return None
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error:  # damaged, or beyond OpenCV's limit of 2³⁰ pixels: PIL tells which
        return None
    return None if pixels is None else cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)  # pyright: ignore[reportReturnType]


def _rgb(image: Image.Image) -> NDArray[np.uint8]:
    """Convert to RGB as PIL does, except that values of more than 8 bits are scaled instead of clipped."""
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.float64) / 257
    elif image.mode == "F":
        values = np.nan_to_num(np.asarray(image).astype(np.float64))
        values *= 255 if values.max(initial=0) <= 1 else 1
    else:
        return np.array(image.convert("RGB"))
    gray = values.round().clip(0, 255).astype(np.uint8)
    return np.repeat(gray[..., None], 3, axis=2)


@contextlib.contextmanager
def _any_size() -> Iterator[None]:
    """Lift PIL's limit of 179 megapixels, which protects servers from strangers: these files are the user's own."""
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def _exif_orientation(data: bytes) -> int:
    if data.startswith(JPEG_MAGIC) and not any(mark in data[:65536] for mark in (EXIF_MAGIC, XMP_ORIENTATION)):
        return 1  # most files: no need to parse the header
    try:
        with _any_size(), Image.open(io.BytesIO(data)) as image:
            return _orientation(image, io.BytesIO(data))
    except PIL_ERRORS:  # OpenCV reads files that PIL does not
        return 1


def _orientation(image: Image.Image, file: IO[bytes]) -> int:
    """The EXIF or XMP orientation, 1 to 8, without decoding pixels; 1 if it is missing or invalid.

    Args:
        image: an opened image.
        file: the file it came from.
    """
    try:
        # PIL's own method for PNG files decodes the whole image, to look for a block after the pixels.
        exif = Image.Image.getexif(image)
        if EXIF_ORIENTATION not in exif and image.format == "PNG":
            exif.load(_late_exif(file))
    except PIL_ERRORS:
        return 1
    value = exif.get(EXIF_ORIENTATION, 1)
    return value if value in range(1, 9) else 1


def _late_exif(file: IO[bytes]) -> bytes:
    """The EXIF block of a PNG file, wherever it is: exiftool writes it after the pixels."""
    file.seek(len(PNG_MAGIC))
    while len(head := file.read(8)) == 8:
        length, kind = struct.unpack(">I4s", head)
        if kind == b"eXIf":
            return file.read(length)
        file.seek(length + 4, io.SEEK_CUR)
    return b""


def _turn(image: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """Turn an image upright: every EXIF orientation is a transposition, then flips of the columns and the rows."""
    if orientation >= 5:
        image = image.transpose(1, 0, 2)
    if orientation in {2, 3, 6, 7}:
        image = image[:, ::-1]
    if orientation in {3, 4, 7, 8}:
        image = image[::-1]
    return image
