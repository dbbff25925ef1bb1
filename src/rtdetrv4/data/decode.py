"""Decoding image files into RGB arrays no larger than needed."""

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
    """Read an image of any common kind (gray, palette, alpha, CMYK, 16 bit) as an upright 8-bit RGB array.

    The array shows the whole image, perhaps at a lower resolution: its sides are halved up to three times while they
    stay at least `scale` times the original. JPEG files are decoded at that size directly, which is faster and averages
    pixels as well.

    Args:
        path: the file.
        size_hw: the image size that the annotations assume. A file of another size but the same aspect ratio counts as
            a resized copy, which boxes relative to `size_hw` fit as well.
        scale: the resolution needed, as a fraction of the original; 1 or more reads every pixel.

    Raises:
        DatasetError: the file is missing or damaged, or its aspect ratio is not that of `size_hw`.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DatasetError(f"{path} cannot be read: {error.strerror}") from error

    try:
        image, full_hw = _decode(data, reduction_for(scale))
    except (*PIL_ERRORS, cv2.error) as error:
        raise DatasetError(f"{path} is damaged or not an image: {error}") from error

    # Annotation tools disagree about EXIF: browsers rotate a photo before anyone draws a box, scripts that read files
    # with PIL do not. The annotated size decides: a photo is left as stored only if its boxes were drawn that way.
    # Where the size cannot tell (square images, half turns), the photo is rotated, as every viewer does.
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
    """Read the height and width that an image has when upright, from the header of its file.

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
    """The pixels of PNG, BMP, TIFF and WebP files (16 bits reduced to 8), or None if OpenCV cannot read them."""
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
    """The EXIF orientation, 1 to 8; 1 if it is missing or invalid.

    TIFF files have no EXIF block, and both PIL and OpenCV turn them upright themselves. In a PNG file only a block
    before the pixels counts, because PIL's `getexif` decodes the whole image to look after them.
    """
    exif = Image.Exif()
    try:
        exif.load(image.info.get("exif", b""))
    except PIL_ERRORS:
        return 1
    value = exif.get(EXIF_ORIENTATION, 1)
    return value if value in range(1, 9) else 1


def _turn(image: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """Turn an image upright: every EXIF orientation is a transposition, then flips of the columns and the rows."""
    if orientation >= 5:
        image = image.transpose(1, 0, 2)
    if orientation in {2, 3, 6, 7}:
        image = image[:, ::-1]
    if orientation in {3, 4, 7, 8}:
        image = image[::-1]
    return image
