"""The sources of images: files, folders, URLs, videos, cameras and arrays, read as a stream of RGB images."""

from __future__ import annotations

import contextlib
import glob
import http.client
import io
import itertools
import logging
import os
import urllib.request
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from PIL import Image, ImageOps

from rtdetrv4.errors import SourceError

logger = logging.getLogger(__name__)

IMAGE_SUFFIXES = frozenset({".avif", ".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})
VIDEO_SUFFIXES = frozenset({".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm", ".wmv"})
MAX_DOWNLOAD_BYTES = 64 * 1024 * 1024
DOWNLOAD_TIMEOUT_S = 15


class Frame(NamedTuple):
    """One image of a source."""

    image: np.ndarray
    """H×W×3 uint8 RGB."""
    path: str | None
    """The file, URL or camera it came from; None for images that were in memory."""
    number: int
    """Position in the source, counted from 0; in a video, the frame number."""


def read_source(source: Any) -> Iterator[Frame]:
    """Read images one at a time, on demand.

    Args:
        source: one of

            - the path of an image or a video; photos are rotated upright according to their EXIF data;
            - a folder (its images, by name) or a glob pattern such as ``"photos/**/*.jpg"``; damaged files among them
              are skipped with a warning;
            - the URL of an image, http(s), at most 64 MiB; or of a video stream, ``rtsp://...``;
            - a camera: its number, as 0 or "0";
            - a NumPy array, H×W×3 (or N×H×W×3) uint8 **RGB**. OpenCV's arrays are BGR, which the values do not
              reveal: reverse their channels with ``image[..., ::-1]``;
            - a PIL image, which is not rotated;
            - a torch tensor, 3×H×W (or N×3×H×W) RGB: uint8, or float in [0, 1];
            - a list, generator or other iterable of these.

    Raises:
        SourceError: the source does not exist or is of an unknown kind (raised at once); an image in it cannot be read
            (raised when its turn comes).
    """
    return (Frame(image, path, number) for number, (image, path) in enumerate(_open(source)))


def _open(source: Any) -> Iterator[tuple[np.ndarray, str | None]]:
    if isinstance(source, str | os.PathLike):
        return _open_name(os.fspath(source))
    if isinstance(source, int):
        return _open_video(source)
    if isinstance(source, np.ndarray):
        return _open_array(source, "an array")
    if hasattr(source, "detach") and hasattr(source, "cpu"):
        return _open_array(_array_of_tensor(source), "a tensor")
    if hasattr(source, "convert") and hasattr(source, "mode"):
        return _open_array(np.array(source.convert("RGB")), "a PIL image")
    if isinstance(source, Iterable) and not isinstance(source, bytes | dict):
        return itertools.chain.from_iterable(map(_open, source))
    raise SourceError(
        f"cannot read images from {type(source).__name__}; give a path, folder, glob pattern, URL, camera number, "
        "NumPy array, PIL image, tensor, or a list of these"
    )


def _open_name(name: str) -> Iterator[tuple[np.ndarray, str | None]]:
    if name.startswith(("http://", "https://")):
        return iter([(_decode(_download(name), name), name)])
    if "://" in name:
        return _open_video(name)
    path = Path(name).expanduser()
    if path.is_dir():
        files = sorted(str(file) for file in path.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES)
        if not files:
            raise SourceError(f"{path} has no images; expected files ending in {' '.join(sorted(IMAGE_SUFFIXES))}")
        return _open_files(files)
    if path.exists():
        return _open_file(str(path))
    if name.isdecimal():
        return _open_video(int(name))
    if not glob.has_magic(name):
        raise SourceError(f"{path} does not exist")
    suffixes = IMAGE_SUFFIXES | VIDEO_SUFFIXES
    matches = glob.glob(str(path), recursive=True)  # noqa: PTH207 - Path.glob takes no absolute patterns
    files = sorted(file for file in matches if Path(file).suffix.lower() in suffixes)
    if not files:
        raise SourceError(f"no image or video matches {path}")
    return _open_files(files)


def _open_file(file: str) -> Iterator[tuple[np.ndarray, str | None]]:
    if Path(file).suffix.lower() in VIDEO_SUFFIXES:
        return _open_video(file)
    return iter([(_read_image(file), file)])


def _open_files(files: Iterable[str]) -> Iterator[tuple[np.ndarray, str | None]]:
    """The images of files found in a folder or by a pattern: a damaged one is skipped."""
    num_read = 0
    for file in files:
        try:
            frames = _open_file(file)
        except SourceError as error:
            logger.warning("%s; skipped", error)
            continue
        num_read += 1
        yield from frames
    if not num_read:
        raise SourceError("none of the images could be read; the warnings above name them")


def _read_image(file: str) -> np.ndarray:
    try:
        data = Path(file).read_bytes()
    except OSError as error:
        raise SourceError(f"{file} cannot be read: {error.strerror}") from error
    return _decode(data, file)


def _decode(data: bytes, name: str) -> np.ndarray:
    """H×W×3 uint8 RGB of any image file: 16 bits are reduced to 8, gray becomes RGB, alpha is dropped."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            upright = ImageOps.exif_transpose(image)
        if upright.mode.startswith("I"):
            upright = Image.fromarray((np.asarray(upright) >> 8).astype(np.uint8))
        return np.array(upright.convert("RGB"))
    except Exception as error:  # what Pillow raises depends on how a file is damaged
        raise SourceError(f"{name} is damaged or not an image ({len(data)} bytes)") from error


def _download(url: str) -> bytes:
    try:
        with urllib.request.urlopen(url, timeout=DOWNLOAD_TIMEOUT_S) as response:
            data = response.read(MAX_DOWNLOAD_BYTES + 1)
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise SourceError(f"{url} cannot be downloaded: {error}") from error
    if len(data) > MAX_DOWNLOAD_BYTES:
        raise SourceError(f"{url} is larger than {MAX_DOWNLOAD_BYTES // 1024**2} MiB; download it and give its path")
    return data


def _open_video(source: str | int) -> Iterator[tuple[np.ndarray, str | None]]:
    name = f"camera {source}" if isinstance(source, int) else source
    with _quiet_opencv():
        video = cv2.VideoCapture(source)
        is_read, frame = video.read()
    if not is_read:
        video.release()
        raise SourceError(f"{name} cannot be read: it cannot be opened, or contains no video that OpenCV can decode")

    def frames() -> Iterator[tuple[np.ndarray, str | None]]:
        current = frame
        try:
            while current is not None:
                yield cv2.cvtColor(current, cv2.COLOR_BGR2RGB), name
                current = video.read()[1]
        finally:
            video.release()

    return frames()


def _open_array(array: np.ndarray, kind: str) -> Iterator[tuple[np.ndarray, str | None]]:
    if array.dtype != np.uint8 or array.ndim not in {3, 4} or array.shape[-1] != 3 or not array.size:
        raise SourceError(
            f"{kind} of shape {array.shape} and type {array.dtype} is not an image; "
            "expected H×W×3 uint8 RGB, or N×H×W×3 for several"
        )
    return ((image, None) for image in (array if array.ndim == 4 else [array]))


def _array_of_tensor(tensor: Any) -> np.ndarray:
    """A tensor on any device as a channels-last uint8 array; does not import torch."""
    if tensor.ndim not in {3, 4} or tensor.shape[-3] != 3:
        raise SourceError(
            f"a tensor of shape {tuple(tensor.shape)} is not an image; expected 3×H×W RGB, or N×3×H×W for several"
        )
    if tensor.is_floating_point():
        array = tensor.detach().float().cpu().numpy()
        if array.size and not (array.min() >= -1e-3 and array.max() <= 1 + 1e-3):
            raise SourceError(
                f"a float tensor with values {array.min():.3g}...{array.max():.3g} is not an image; expected "
                "[0, 1], not normalized by mean and standard deviation"
            )
        array = (array * 255).round().clip(0, 255).astype(np.uint8)
    else:
        array = tensor.detach().cpu().numpy()
    return np.ascontiguousarray(np.moveaxis(array, -3, -1))


@contextlib.contextmanager
def _quiet_opencv() -> Iterator[None]:
    """Silence OpenCV, which writes several lines to stderr about a video that it cannot open."""
    settings: Any = getattr(cv2.utils, "logging", cv2)  # OpenCV 4 has these at the top level
    level = settings.setLogLevel(0)
    try:
        yield
    finally:
        settings.setLogLevel(level)
