"""Pictures inside a page: thumbnails with boxes, as JPEG in data URIs, that together keep to a size."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from rtdetrv4.errors import SourceError
from rtdetrv4.input_files import read_file
from rtdetrv4.runtime.draw import Color, draw_boxes
from rtdetrv4.runtime.pixels import MAX_FILE_BYTES, PixelsError, check_scans, open_image, rgb_from_pil

MAX_SIDE = 320
MAX_PICTURE_BYTES = 3_600_000
"""Of all pictures of a page as data URIs, which leaves room for text and charts below `page.MAX_BYTES`."""
QUALITIES = (78, 65, 50, 35)
"""Of JPEG, tried one after the other until the pictures fit."""


def read_thumbnail(
    path: str | Path,
    boxes_xyxy_px: np.ndarray | Sequence[Sequence[float]] = (),
    class_ids: Sequence[int] | np.ndarray = (),
    labels: Sequence[str] = (),
    *,
    max_side: int = MAX_SIDE,
    colors: Sequence[Color] | None = None,
) -> np.ndarray:
    """Read an image file and draw boxes on a small copy; JPEG files are decoded no larger than needed.

    Args:
        path: the image file.
        boxes_xyxy_px: (n, 4), pixels of the upright image.
        class_ids: (n,), which determine the colors.
        labels: n texts.
        max_side: the longest side of the thumbnail, in pixels; smaller images are enlarged to it.
        colors: n colors instead of those of the classes.

    Returns:
        h×w×3 uint8 RGB.

    Raises:
        SourceError: the file cannot be read.
    """
    try:
        data = read_file(path, MAX_FILE_BYTES)
        check_scans(data)
        with open_image(io.BytesIO(data)) as image:
            longest = max(image.size)  # turning the image upright does not change it
            image.draft("RGB", (2 * max_side, 2 * max_side))
            pixels = rgb_from_pil(image)
    except (OSError, PixelsError) as error:
        raise SourceError(f"cannot read {path}: {error}") from error
    boxes = np.asarray(boxes_xyxy_px, dtype=np.float64).reshape(-1, 4) * (max(pixels.shape) / longest)
    return thumbnail(pixels, boxes, class_ids, labels, max_side=max_side, colors=colors)


def thumbnail(
    image: np.ndarray,
    boxes_xyxy_px: np.ndarray | Sequence[Sequence[float]] = (),
    class_ids: Sequence[int] | np.ndarray = (),
    labels: Sequence[str] = (),
    *,
    max_side: int = MAX_SIDE,
    colors: Sequence[Color] | None = None,
) -> np.ndarray:
    """Draw boxes on a small copy of an image, after scaling it, so that lines and labels stay readable.

    Args:
        image: H×W×3 uint8 RGB; not changed.
        boxes_xyxy_px: (n, 4), pixels of `image`.
        class_ids: (n,), which determine the colors.
        labels: n texts.
        max_side: the longest side of the thumbnail, in pixels; smaller images are enlarged to it.
        colors: n colors instead of those of the classes.

    Returns:
        h×w×3 uint8 RGB.
    """
    height, width = image.shape[:2]
    scale = max_side / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    small = np.array(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR, reducing_gap=2.0))
    boxes = np.asarray(boxes_xyxy_px, dtype=np.float64).reshape(-1, 4) * np.array(
        [size[0] / width, size[1] / height] * 2
    )
    return draw_boxes(small, boxes, np.asarray(class_ids, dtype=np.int64), labels, colors)


def encode(pictures: Sequence[np.ndarray], max_bytes: int = MAX_PICTURE_BYTES) -> list[str]:
    """Encode pictures as data URIs that take at most `max_bytes` together.

    The quality is the best of `QUALITIES` at which all fit. If they fit at none, the last pictures are left out.

    Args:
        pictures: h×w×3 uint8 RGB each, the most important first.
        max_bytes: for all of them.

    Returns:
        A data URI for each picture, or "" for one that was left out.
    """
    uris: list[str] = []
    for quality in QUALITIES:
        uris = [_uri(picture, quality) for picture in pictures]
        if sum(map(len, uris)) <= max_bytes:
            return uris
    fits = np.cumsum([len(uri) for uri in uris]) <= max_bytes
    return [uri if fit else "" for uri, fit in zip(uris, fits, strict=True)]


def _uri(picture: np.ndarray, quality: int) -> str:
    file = io.BytesIO()
    # Thin lines keep their color only without subsampling.
    Image.fromarray(picture).save(file, "JPEG", quality=quality, subsampling=0, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode('ascii')}"
