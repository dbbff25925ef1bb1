"""Pixels of any type as H×W×3 uint8 RGB, the one form that the rest of this package knows.

The rules are the same for files, PIL images, arrays and tensors, in training and in prediction. The type alone decides
what a value means, never the values of one image, because a dark frame of a video must not be read differently from a
bright one:

- 8-bit integers are [0, 255], 16-bit integers [0, 65535] (their high byte is kept), booleans black and white;
- floats are [0, 1]. The one exception are files: an array can be converted, while a TIFF file of floats has no way to
  say that it means [0, 255], and is taken so if a value is above 1;
- gray becomes RGB, palettes and CMYK are converted as Pillow does, and alpha is dropped.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import re
import struct
import threading
from collections.abc import Iterator, Sequence
from typing import IO

import numpy as np
from PIL import Image, UnidentifiedImageError

EXIF_ORIENTATION = 0x0112
UNDO = {6: 8, 8: 6}
"""The orientation that undoes another; the others undo themselves."""
TIFF_TILE_WIDTH, TIFF_TILE_LENGTH = 322, 323
JPEG_MAGIC = b"\xff\xd8"
PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
MAX_PIXELS = 2**30
"""As in OpenCV: 3 GiB of RGB."""
LARGE_PIXELS = 2**27
MAX_PIXELS_PER_BYTE = 10_000
"""Of images of more than `LARGE_PIXELS`: a PNG file of one color and a bit per pixel has 8,256."""
MAX_FILE_BYTES = 2**32
"""Of an image file: as many pixels in 32 bits, not compressed."""
MAX_SCANS = 100
"""Passes over a progressive JPEG, each of which takes as long as all pixels: encoders write some ten."""
MIN_CHUNK_BYTES = 256
"""The mean size of the chunks of a PNG file, from which on they are too many: encoders write thousands of bytes."""
MAX_SMALL_CHUNKS = 10_000
MAX_SEGMENTS = 10_000
"""Of a JPEG file, and blocks of a GIF file: encoders write some ten, and Pillow reads each of them by itself."""
MIN_BLOCK_BYTES = 64
"""The mean size of the blocks of a GIF file, from which on they are too many."""
MAX_TILE_SHARE, USUAL_TILE = 4, 2**22
"""The largest tile of a TIFF file, in images, and what every image may have: a whole tile is decoded for a pixel."""
CHANNELS = {1, 3, 4}
"""Gray, RGB, RGBA."""
HEIF_BRANDS = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"})
FLOAT_TOLERANCE = 0.1
"""How far floats may exceed [0, 1]: bicubic resampling overshoots at edges."""

_FORMATS = (("JPEG", "PNG", "BMP", "GIF", "PPM"), ("TIFF", "WEBP", "AVIF", "HEIF", "JPEG2000", "MPO"))
"""Pillow's names of what is read, those that it knows from the start first. By itself it would try forty, whatever the
name of a file: PostScript, for one, which it has Ghostscript execute."""
_AFTER_SCAN = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")
"""A marker between the data of a JPEG: neither a byte of data nor a restart."""


class _PillowLimit:
    """That on the pixels of an image, which belongs to the process: whoever needs it last puts it back."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._num_lifted = 0
        self._usual: int | None = None

    def lift(self) -> None:
        with self._lock:
            if self._num_lifted == 0:
                self._usual, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
            self._num_lifted += 1

    def put_back(self) -> None:
        with self._lock:
            self._num_lifted -= 1
            if self._num_lifted == 0:
                Image.MAX_IMAGE_PIXELS = self._usual


_pillow_limit = _PillowLimit()


class PixelsError(ValueError):
    """Pixels that cannot be understood; the message says what they are and what was expected, without a subject."""


class TooManyPixelsError(PixelsError):
    """An image is larger than what is allowed."""


def decode_image(data: bytes, *, kinds: Sequence[str] | None = None) -> np.ndarray:
    """Decode an image file into an upright H×W×3 uint8 RGB array; of an animation, its first picture.

    Args:
        data: the file.
        kinds: formats to try, as Pillow calls them; None: all that it reads.

    Raises:
        PixelsError: the file is not an image, damaged, too large, or of a kind that cannot be read.
    """
    check_scans(data)
    with open_image(io.BytesIO(data), kinds=kinds) as image:
        return rgb_from_pil(image)


def stored_size(data: bytes, *, kinds: Sequence[str] | None = None, max_pixels: int | None = None) -> tuple[int, int]:
    """Read the size (h, w) that an image file says it has, from its first bytes: no pixel is decoded.

    Args:
        data: the file.
        kinds: see `decode_image`.
        max_pixels: the most pixels that are allowed; None: `MAX_PIXELS`.

    Raises:
        TooManyPixelsError: it has more of them.
        PixelsError: the file is not an image, or of a kind that cannot be read.
    """
    with open_image(io.BytesIO(data), kinds=kinds, max_pixels=max_pixels) as image:
        return image.height, image.width


def decode_stored(data: bytes) -> tuple[np.ndarray, int]:
    """Decode an image file without turning it.

    Returns:
        H×W×3 uint8 RGB, and the orientation, 1 to 8, that `turn` takes.

    Raises:
        PixelsError: see `decode_image`.
    """
    check_scans(data)
    with open_image(io.BytesIO(data)) as image:
        if image.format != "TIFF":
            _load(image)
            return stored_rgb(image), orientation(image)
        turned = orientation(image)  # Pillow turns these files while it loads them, and then forgets it
        _load(image)
        return turn(stored_rgb(image), UNDO.get(turned, turned)), turned


def read_header(file: IO[bytes]) -> tuple[tuple[int, int], int]:
    """Read the size (h, w) of an image as it is stored, and its orientation, without decoding pixels if possible.

    Raises:
        PixelsError: the file is not an image, or too large.
    """
    is_late = _has_late_metadata(file)
    with open_image(file) as image:
        if is_late:
            _load(image)
        turned = orientation(image)
        width, height = image.size
        if image.format == "TIFF" and turned >= 5:  # Pillow gives the size after turning
            width, height = height, width
        return (height, width), turned


def check_scans(data: bytes) -> None:
    """Check that a JPEG file, of few bytes perhaps, takes no hours: each of its scans passes over all pixels.

    Raises:
        PixelsError: it has more than `MAX_SCANS`.
    """
    # Counted roughly first, because what follows the image, such as a video, may look like scans.
    if data.startswith(JPEG_MAGIC) and data.count(b"\xff\xda") > MAX_SCANS and _has_many_scans(data):
        raise PixelsError(f"has more than {MAX_SCANS} scans, as no encoder writes; save it anew")


def _has_many_scans(data: bytes) -> bool:
    """Whether a JPEG file has more than `MAX_SCANS`, or segments without end, up to the end of its image."""
    num_scans = num_segments = 0
    position = 2
    while num_scans <= MAX_SCANS and num_segments <= MAX_SEGMENTS:
        marker = _AFTER_SCAN.search(data, position)
        if marker is None or marker[0][1] == 0xD9:  # the end of the image
            return False
        num_segments += 1
        num_scans += marker[0][1] == 0xDA
        position = marker.end() + max(int.from_bytes(data[marker.end() : marker.end() + 2], "big"), 2)
    return True


@contextlib.contextmanager
def open_image(
    file: IO[bytes], *, kinds: Sequence[str] | None = None, max_pixels: int | None = None
) -> Iterator[Image.Image]:
    """Open an image file, however large up to a limit, and translate what Pillow raises meanwhile.

    Raises:
        TooManyPixelsError: the image has more pixels.
        PixelsError: the file is not an image, damaged, too large, or of a kind that cannot be read.
    """
    head, num_bytes = file.read(12), file.seek(0, io.SEEK_END)
    file.seek(0)
    try:
        with _any_size():
            opened = _identified(file, kinds)
        with opened as image:
            check_size(image.height, image.width, num_bytes, MAX_PIXELS if max_pixels is None else max_pixels)
            _check_tiles(image)
            yield image
    except PixelsError:
        raise
    except MemoryError as error:
        raise PixelsError("does not fit into memory; cut it into tiles, or scale it down") from error
    except Exception as error:  # what Pillow raises depends on how a file is damaged
        if head[4:8] == b"ftyp" and head[8:12] in HEIF_BRANDS:
            raise PixelsError(
                "is a HEIF photo (.heic), which Pillow cannot read by itself; save it as JPEG, or register the opener "
                "of the package pillow-heif first"
            ) from error
        raise PixelsError(f"is damaged or not an image ({num_bytes} bytes)") from error


def _identified(file: IO[bytes], kinds: Sequence[str] | None) -> Image.Image:
    first, others = _FORMATS
    _check_chunks(file)
    _check_segments(file)
    if kinds is not None:
        return Image.open(file, formats=tuple(kinds))
    try:
        return Image.open(file, formats=first)
    except UnidentifiedImageError:
        Image.init()
        return Image.open(file, formats=[name for name in others if name in Image.OPEN])


def check_size(height: int, width: int, num_bytes: int, max_pixels: int = MAX_PIXELS) -> None:
    """Check the size that a file of so many bytes says, before memory for it is asked for.

    Raises:
        TooManyPixelsError: there are more than `max_pixels`.
        PixelsError: there are no pixels, or more than the bytes can hold.
    """
    if height < 1 or width < 1:
        raise PixelsError(f"is damaged or not an image: it has {width}×{height} pixels")
    if width * height > max_pixels:
        most = "2^30" if max_pixels == MAX_PIXELS else f"{max_pixels:,}"
        raise TooManyPixelsError(f"has {width}×{height} pixels, expected at most {most}; cut it into tiles")
    if width * height > max(LARGE_PIXELS, MAX_PIXELS_PER_BYTE * num_bytes):
        raise PixelsError(f"is damaged: {num_bytes} bytes cannot hold the {width}×{height} pixels that it says")


def rgb_from_pil(image: Image.Image) -> np.ndarray:
    """The pixels of a PIL image of any mode, turned upright as its EXIF data say: H×W×3 uint8 RGB.

    An image that was turned upright before, as by `PIL.ImageOps.exif_transpose`, no longer has such data and stays.

    Raises:
        PixelsError: the mode cannot be converted, or values are out of range.
        OSError: the file behind the image is damaged.
    """
    _load(image)
    return np.ascontiguousarray(turn(stored_rgb(image), orientation(image)))


def stored_rgb(image: Image.Image) -> np.ndarray:
    """The pixels of a loaded PIL image of any mode as they are stored, not turned: H×W×3 uint8 RGB.

    Raises:
        PixelsError: the mode cannot be converted, or values are out of range.
    """
    if image.mode.startswith(("I", "F")):
        values = np.asarray(image)
        if image.mode == "I" and values.size and values.min() >= 0 and values.max() <= 65535:
            values = values.astype(np.uint16)  # what older versions of Pillow make of 16-bit PNG files
        if image.mode == "F" and image.format and values.size and values.max() > 1 + FLOAT_TOLERANCE:
            values = values / 255
        return rgb_from_array(values)
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # going straight to RGB, Pillow warns
    try:
        return np.array(image if image.mode == "RGB" else image.convert("RGB"))
    except ValueError as error:
        raise PixelsError(f"has mode {image.mode}, expected one that Pillow converts to RGB") from error


def rgb_from_array(array: np.ndarray) -> np.ndarray:
    """Convert arrays of any pixel type to uint8 RGB; an array that is uint8 RGB already is returned as it is.

    Args:
        array: H×W gray; H×W×C or N×H×W×C with 1 (gray), 3 (RGB) or 4 (RGBA) channels; uint8, uint16, bool, or floats in
            [0, 1].

    Returns:
        H×W×3 or N×H×W×3 uint8.

    Raises:
        PixelsError: the shape, the type or the values are none of these.
    """
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim not in {3, 4} or array.shape[-1] not in CHANNELS or not array.size:
        raise PixelsError(
            f"of shape {array.shape} and type {array.dtype} is not an image; expected H×W×3 RGB, H×W×4 RGBA or H×W "
            f"gray, or N×H×W×3 for several{_channels_first(array)}"
        )
    kind, size = array.dtype.kind, array.dtype.itemsize
    if kind == "f":
        array = _from_floats(array)
    elif kind == "b":
        array = array * np.uint8(255)
    elif (kind, size) == ("u", 2):
        array = (array >> 8).astype(np.uint8)
    elif (kind, size) != ("u", 1):
        raise PixelsError(
            f"of type {array.dtype} is not an image; expected uint8, uint16, bool, or floats in [0, 1]. "
            "If its values are in [0, 255], convert it with .astype(np.uint8)"
        )
    channels = array.shape[-1]
    if channels == 1:
        return np.repeat(array, 3, axis=-1)
    return array if channels == 3 else array[..., :3]


def orientation(image: Image.Image) -> int:
    """The EXIF or XMP orientation of a PIL image as far as it is loaded, 1 to 8; 1 if it is missing or invalid."""
    try:
        # The method of PNG images would load those that have no EXIF data.
        value = Image.Image.getexif(image).get(EXIF_ORIENTATION, 1)
    except Exception:  # a damaged block can fail in any way, and the pixels are worth more than it
        return 1
    return value if value in range(1, 9) else 1


def turn(image: np.ndarray, orientation: int) -> np.ndarray:
    """Turn an image upright: every EXIF orientation is a transposition, then flips of the columns and the rows."""
    if orientation >= 5:
        image = image.transpose(1, 0, 2)
    if orientation in {2, 3, 6, 7}:
        image = image[:, ::-1]
    if orientation in {3, 4, 7, 8}:
        image = image[::-1]
    return image


@contextlib.contextmanager
def _any_size() -> Iterator[None]:
    """Lift Pillow's limit, meant for servers: a user's own orthophoto would be refused as a stranger's attack."""
    _pillow_limit.lift()
    try:
        yield
    finally:
        _pillow_limit.put_back()


def _load(image: Image.Image) -> None:
    """Load the pixels of an image that may be lazy; Pillow turns those of TIFF files, and applies its limit again."""
    with _any_size() if image.format == "TIFF" else contextlib.nullcontext():
        image.load()


def _has_late_metadata(file: IO[bytes]) -> bool:
    """Whether a PNG file may have its orientation behind the pixels, where exiftool writes it; the file is rewound."""
    is_late = behind_pixels = False
    for kind in _chunks(file):
        behind_pixels |= kind == b"IDAT"
        is_late |= behind_pixels and kind in {b"eXIf", b"iTXt", b"zTXt"}
    return is_late


def has_whole_chunks(data: bytes) -> bool:
    """Whether the chunks of a PNG file end within it.

    OpenCV asks for as much memory as a chunk says it has, up to 4 GB, of a file of a hundred bytes, too.
    """
    position, kind = len(PNG_MAGIC), b""
    while kind != b"IEND" and position + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        position += 12 + length
    return position <= len(data)


def _check_chunks(file: IO[bytes]) -> None:
    """Check that a PNG file does not consist of millions of empty chunks, which Pillow reads one by one.

    Raises:
        PixelsError: it does.
    """
    limit = MAX_SMALL_CHUNKS + file.seek(0, io.SEEK_END) // MIN_CHUNK_BYTES
    if next(itertools.islice(_chunks(file), limit, None), None) is not None:
        raise PixelsError(f"is a PNG file of more than {limit} chunks, as no encoder writes; save it anew")
    file.seek(0)


def _chunks(file: IO[bytes]) -> Iterator[bytes]:
    """The kinds of the chunks of a PNG file, none of others; it is rewound before and behind them."""
    file.seek(0)
    if file.read(len(PNG_MAGIC)) == PNG_MAGIC:
        while len(head := file.read(8)) == 8:
            length, kind = struct.unpack(">I4s", head)
            yield kind
            file.seek(length + 4, io.SEEK_CUR)
    file.seek(0)


def _check_segments(file: IO[bytes]) -> None:
    """Check that a JPEG or GIF file does not begin with millions of tiny segments or blocks.

    Raises:
        PixelsError: it does.
    """
    num_bytes = file.seek(0, io.SEEK_END)
    file.seek(0)
    magic = file.read(6)
    if magic.startswith(JPEG_MAGIC):
        steps, limit = _jpeg_steps(file), MAX_SEGMENTS
    elif magic in {b"GIF87a", b"GIF89a"}:
        steps, limit = _gif_steps(file), MAX_SEGMENTS + num_bytes // MIN_BLOCK_BYTES
    else:
        file.seek(0)
        return
    if next(itertools.islice(steps, limit, None), None) is not None:
        raise PixelsError(f"begins with more than {limit} segments, as no encoder writes; save it anew")
    file.seek(0)


def _jpeg_steps(file: IO[bytes]) -> Iterator[bytes]:
    """What Pillow reads one after the other before the pixels: segments, and bytes between them."""
    file.seek(len(JPEG_MAGIC))
    while byte := file.read(1):
        yield byte
        if byte != b"\xff":
            continue
        while (kind := file.read(1)) == b"\xff":
            yield kind
        if not kind or kind in b"\xd9\xda":  # the end of the image, or the first scan
            return
        if kind > b"\x01" and not b"\xd0" <= kind <= b"\xd8":  # others have no length
            file.seek(max(int.from_bytes(file.read(2), "big") - 2, 0), io.SEEK_CUR)


def _gif_steps(file: IO[bytes]) -> Iterator[bytes]:
    """Extensions of a GIF file, and their blocks, before its first picture."""
    file.seek(6)
    if len(screen := file.read(7)) == 7 and screen[4] & 0x80:
        file.seek(3 << ((screen[4] & 7) + 1), io.SEEK_CUR)  # the palette
    while (kind := file.read(1)) and kind not in b",;":  # a picture, or the end
        yield kind
        if kind == b"!":
            file.seek(1, io.SEEK_CUR)
            while (length := file.read(1)) not in {b"", b"\0"}:
                yield length
                file.seek(length[0], io.SEEK_CUR)


def _check_tiles(image: Image.Image) -> None:
    """Check that a TIFF file has no tile of many times the image.

    Raises:
        PixelsError: it has one.
    """
    tags = getattr(image, "tag_v2", {}) if image.format == "TIFF" else {}
    width, height = (tags.get(tag, 0) for tag in (TIFF_TILE_WIDTH, TIFF_TILE_LENGTH))
    if width * height > max(MAX_TILE_SHARE * image.width * image.height, USUAL_TILE):
        raise PixelsError(f"has tiles of {width}×{height} pixels for {image.width}×{image.height}; save it anew")


def _from_floats(array: np.ndarray) -> np.ndarray:
    low, high = float(array.min()), float(array.max())
    if not (low >= -FLOAT_TOLERANCE and high <= 1 + FLOAT_TOLERANCE):  # NaN too
        raise PixelsError(
            f"of floats with values {low:.3g}...{high:.3g} is not an image; expected [0, 1], not normalized by mean "
            "and standard deviation. If its values are in [0, 255], convert it to uint8"
        )
    return (array.astype(np.float32) * 255).round().clip(0, 255).astype(np.uint8)


def _channels_first(array: np.ndarray) -> str:
    """What to do about an array that looks like a tensor's layout."""
    if array.ndim == 3 and array.shape[0] in CHANNELS and array.size:
        return ". Its channels seem to come first; move them with .transpose(1, 2, 0)"
    return ""
