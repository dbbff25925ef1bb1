"""Image files to RGB arrays, no larger than needed."""

from __future__ import annotations

import io
from pathlib import Path

import cv2
import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

from rtdetrv4.errors import DatasetError

JPEG_MAGIC = b"\xff\xd8"
EXIF_MAGIC = b"Exif\x00\x00"
EXIF_ORIENTATION = 0x0112
MAX_REDUCTION = 8
ASPECT_TOLERANCE = 0.01
PIL_ERRORS = (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError)


def read_image(path: Path, size_hw: tuple[int, int], scale: float = 1.0) -> NDArray[np.uint8]:
    """Read an image of any common kind (gray, palette, alpha, CMYK, 16 bit) as 8-bit RGB.

    The array shows the whole image but may have fewer pixels: halved up to three times while it stays at least `scale`
    times the original. JPEG files are decoded at that size to begin with, which costs less and averages as it shrinks.

    Args:
        path: the file.
        size_hw: the size its annotations are written for. A file of another size but the same shape is taken for a
            resized copy; boxes relative to `size_hw` fit it.
        scale: resolution that is needed, as a fraction of the original; 1 or more reads every pixel.

    Raises:
        DatasetError: the file is missing, damaged, or of another shape than `size_hw`.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DatasetError(f"{path} cannot be read: {error.strerror}") from error

    try:
        image, full_hw = _decode(data, reduction_for(scale))
    except (*PIL_ERRORS, cv2.error) as error:
        raise DatasetError(f"{path} is damaged or not an image: {error}") from error

    # Annotation tools disagree about EXIF: browsers turn the photo before anyone draws a box, scripts that read files
    # with PIL do not. The annotated size tells which: the photo is left lying only if that is how its boxes see it.
    # Where the size cannot tell (square, or turned by half), it is turned, as every viewer does.
    orientation = _exif_orientation(data)
    if orientation >= 5 and full_hw == size_hw and full_hw[0] != full_hw[1]:
        orientation = 1
    upright = _turn(image, orientation)
    height, width = full_hw if orientation < 5 else full_hw[::-1]
    if abs(height * size_hw[1] / (width * size_hw[0]) - 1) > ASPECT_TOLERANCE:
        raise DatasetError(
            f"{path} is {width}×{height} pixels, but its annotations are for {size_hw[1]}×{size_hw[0]}; "
            "correct width and height in the annotations"
        )
    return np.ascontiguousarray(upright)


def read_size(path: Path) -> tuple[int, int]:
    """Height and width of an image once it is upright, read from the header of its file.

    Raises:
        DatasetError: the file is missing or not an image.
    """
    try:
        with Image.open(path) as image:
            width, height = image.size
            return (height, width) if _orientation(image) < 5 else (width, height)
    except PIL_ERRORS as error:
        raise DatasetError(f"{path} is damaged or not an image: {error}") from error


def reduction_for(scale: float) -> int:
    """What `read_image` divides the sides of an image by that is needed at `scale`: 1, 2, 4 or 8."""
    reduction = 1
    while reduction < MAX_REDUCTION and reduction * 2 * scale <= 1:
        reduction *= 2
    return reduction


def _decode(data: bytes, reduction: int) -> tuple[NDArray[np.uint8], tuple[int, int]]:
    """Pixels, H×W×3 at 1/`reduction` of the resolution, and the full size (h, w)."""
    if data.startswith(JPEG_MAGIC):
        try:
            header = simplejpeg.decode_jpeg_header(data)
            height, width, colorspace = int(header[0]), int(header[1]), header[2]
            if colorspace not in {"CMYK", "YCCK"}:
                min_height, min_width = -(-height // reduction), -(-width // reduction)
                pixels = simplejpeg.decode_jpeg(data, min_height=min_height, min_width=min_width)
                return pixels, (height, width)
        except ValueError:  # perhaps only odd, such as bytes behind the end: PIL reads those, and refuses damaged ones
            pass
    pixels = None if data.startswith(JPEG_MAGIC) else _decode_opencv(data)
    if pixels is None:
        with Image.open(io.BytesIO(data)) as image:
            pixels = np.array(image.convert("RGB"))
    height, width = pixels.shape[:2]
    if reduction > 1:
        small = (-(-width // reduction), -(-height // reduction))
        pixels = cv2.resize(pixels, small, interpolation=cv2.INTER_AREA)
    return pixels, (height, width)  # pyright: ignore[reportReturnType]


def _decode_opencv(data: bytes) -> NDArray[np.uint8] | None:
    """Pixels of PNG, BMP, TIFF and WebP files (16 bit brought down to 8), or None for what OpenCV does not read."""
    if not data:
        return None
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    return None if pixels is None else cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)  # pyright: ignore[reportReturnType]


def _exif_orientation(data: bytes) -> int:
    if data.startswith(JPEG_MAGIC) and EXIF_MAGIC not in data[:65536]:  # most files: no need to parse the header
        return 1
    try:
        with Image.open(io.BytesIO(data)) as image:
            return _orientation(image)
    except PIL_ERRORS:  # OpenCV reads files that PIL does not
        return 1


def _orientation(image: Image.Image) -> int:
    """1 to 8 as EXIF numbers them; 1 if there is none or it is invalid.

    TIFF files have no EXIF block: PIL and OpenCV both turn them upright themselves. In a PNG file only a block before
    the pixels counts, because PIL's `getexif` decodes the whole image to look behind them.
    """
    exif = Image.Exif()
    try:
        exif.load(image.info.get("exif", b""))
    except PIL_ERRORS:
        return 1
    value = exif.get(EXIF_ORIENTATION, 1)
    return value if value in range(1, 9) else 1


def _turn(image: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """The image upright: EXIF orientations are a transposition, then a flip of columns, then of rows."""
    if orientation >= 5:
        image = image.transpose(1, 0, 2)
    if orientation in {2, 3, 6, 7}:
        image = image[:, ::-1]
    if orientation in {3, 4, 7, 8}:
        image = image[::-1]
    return image
