"""The sources of images: files, folders, URLs, videos, cameras and arrays, read as a stream of RGB images."""

from __future__ import annotations

import contextlib
import glob
import itertools
import logging
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from PIL import Image

from rtdetrv4.errors import SourceError
from rtdetrv4.input_files import of_home, open_file, read_file
from rtdetrv4.runtime.pixels import CHANNELS, MAX_FILE_BYTES, PixelsError, decode_image, rgb_from_array, rgb_from_pil
from rtdetrv4.runtime.prediction_lines import LINES_FILE, pictures_in

logger = logging.getLogger(__name__)

IMAGE_SUFFIXES = frozenset(
    {
        *(".avif", ".bmp", ".gif", ".heic", ".heif", ".jfif", ".jpe", ".jpeg", ".jpg", ".jp2", ".mpo"),
        *(".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp"),
    }
)
VIDEO_SUFFIXES = frozenset({".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm", ".wmv"})
HIDDEN = (".", "__MACOSX", "@eaDir")
"""How the names of files and folders begin that systems leave behind, such as ._photo.jpg of macOS."""
MAX_LOOKED_AT = 20_000
"""Files and folders below a folder that has images of its own, among which others are counted."""
MAX_DOWNLOAD_BYTES = 64 * 1024 * 1024
DOWNLOAD_TIMEOUT_S = 15
_TEXT = bytes([9, 10, 13, *range(32, 127)])
"""The bytes of plain text."""


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
            - a folder (its images by name, or those of its subfolders if it has none of its own) or a glob pattern such
              as ``"photos/**/*.jpg"``; hidden files are skipped, and damaged ones and pictures that ``predict`` wrote
              there too, with a message;
            - the URL of an image, http(s), at most 64 MiB; or of a video stream, ``rtsp://...``;
            - a camera: its number, as 0 or "0";
            - a NumPy array, H×W×3 **RGB** (or N×H×W×3, H×W×4 RGBA, H×W gray): uint8, uint16, bool, or floats in [0, 1].
              OpenCV's arrays are BGR, which the values do not reveal: reverse their channels with ``image[..., ::-1]``;
            - a PIL image of any mode, rotated upright like the file it came from;
            - a torch tensor, 3×H×W RGB (or N×3×H×W, 4×H×W RGBA, H×W gray) of the same types;
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
    if hasattr(source, "detach") and hasattr(source, "cpu"):
        return _open_array(_array_of_tensor(source), "a tensor")
    if isinstance(source, Image.Image):
        return _open_pil(source)
    if hasattr(source, "__array__") and (array := np.asarray(source)).dtype.kind not in "OUS":  # those hold names
        return _open_array(array, "an array")
    if isinstance(source, Iterable) and not isinstance(source, bytes | dict):
        return itertools.chain.from_iterable(map(_open, source))
    raise SourceError(
        f"cannot read images from {type(source).__name__}; give a path, folder, glob pattern, URL, camera number, "
        "NumPy array, PIL image, tensor, or a list of these"
    )


def _open_name(name: str) -> Iterator[tuple[np.ndarray, str | None]]:
    if not name.strip():
        raise SourceError("the path of the images is empty; if it comes from a variable of the shell, that is not set")
    if name.startswith(("http://", "https://")):
        return iter([(_decode(_download(name), name), name)])
    if "://" in name:
        return _open_video(name)
    path = of_home(name)
    if path.is_dir():
        return _open_files(_images_in(path))
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
        raise SourceError(f"no image or video matches {path}; {_what_is_there(str(path), matches)}")
    return _open_files(_without_own_pictures(files))


def _what_is_there(pattern: str, matches: list[str]) -> str:
    """What a pattern that matches no image matches, or what lies where it begins to be one."""
    if files := [file for file in matches if Path(file).is_file()]:
        return f"it matches {_kinds(files)}"
    parts = Path(pattern).parts
    fixed = list(itertools.takewhile(lambda part: not glob.has_magic(part), parts))
    folder = Path(*fixed)
    if not folder.is_dir():
        return f"{folder} does not exist"
    files = [entry.path for entry in os.scandir(folder) if entry.is_file() and not entry.name.startswith(HIDDEN)]
    suffix = Path(pattern).suffix
    is_near = any(Path(file).suffix.lower() == suffix.lower() != "" and Path(file).suffix != suffix for file in files)
    hint = ", and a pattern tells upper from lower case" if is_near else ""
    return f"{folder} holds {_kinds(files) if files else 'no files'}{hint}"


def _kinds(files: list[str]) -> str:
    """The suffixes of files and how many have them, the most frequent first."""
    counts = Counter(Path(file).suffix or "no suffix" for file in files).most_common(4)
    return ", ".join(f"{count} × {suffix}" for suffix, count in counts)


def _without_own_pictures(files: list[str]) -> list[str]:
    """The files without pictures that predict wrote, which would otherwise be searched when it runs again.

    Raises:
        SourceError: no other file is left.
    """
    written = cache(pictures_in)
    kept = [file for file in files if Path(file).name not in written(Path(file).parent)]
    if len(kept) < len(files):
        if not kept:
            raise SourceError(
                f"{Path(files[0]).parent} has only pictures that an earlier predict wrote, as {LINES_FILE} says; give "
                "the images that they were made from"
            )
        logger.info("Skipped, because an earlier predict wrote them (%s): %d", LINES_FILE, len(files) - len(kept))
    return kept


def _images_in(folder: Path) -> list[str]:
    """The images of a folder by name; if it has none of its own, those of its subfolders."""
    of_subfolders: list[str] = []
    for place, subfolders, names in os.walk(folder):
        subfolders[:] = [name for name in subfolders if not name.startswith(HIDDEN)]
        files = [os.path.join(place, name) for name in names if _is_image(name)]  # noqa: PTH118 - names as they are
        if Path(place) == folder and files:
            _tell_of_subfolders(folder, subfolders)
            return _without_own_pictures(sorted(files))
        of_subfolders += files
    if not of_subfolders:
        raise SourceError(
            f"{folder} has no images; expected files ending in {' '.join(sorted(IMAGE_SUFFIXES))}. "
            f'For videos, give a pattern such as "{folder}/*.mp4"'
        )
    of_subfolders = _without_own_pictures(sorted(of_subfolders))
    logger.info("%s has images in subfolders only, %d of them", folder, len(of_subfolders))
    return of_subfolders


def _tell_of_subfolders(folder: Path, subfolders: list[str]) -> None:
    """Warn of images in the subfolders of a folder that has images of its own, which are not read."""
    count = looked_at = 0
    for subfolder in subfolders:
        for place, inner, names in os.walk(folder / subfolder):
            inner[:] = [name for name in inner if not name.startswith(HIDDEN)]
            images = {name for name in names if _is_image(name)}
            count += len(images - pictures_in(Path(place))) if images else 0
            looked_at += len(inner) + len(names)
            if looked_at > MAX_LOOKED_AT:
                break
    if count:
        at_least = "at least " if looked_at > MAX_LOOKED_AT else ""
        left_out = f"{at_least}{count} images in subfolders of {folder} are left out"
        logger.warning('%s; to include them, give "%s"', left_out, folder / "**")


def _is_image(name: str) -> bool:
    return Path(name).suffix.lower() in IMAGE_SUFFIXES and not name.startswith(HIDDEN)


def _open_file(file: str) -> Iterator[tuple[np.ndarray, str | None]]:
    if Path(file).suffix.lower() in VIDEO_SUFFIXES:
        _require_video(file)
        return _open_video(file)
    return iter([(_read_image(file), file)])


def _require_video(file: str) -> None:
    """Check that a video is a file, and no text: of a playlist, a decoder would open other files that it names.

    Raises:
        SourceError: it is something else.
    """
    try:
        with open_file(file) as opened:
            start = opened.read(512)
    except OSError as error:
        raise SourceError(f"{file} cannot be read: {error.strerror}") from error
    if start and not start.translate(None, _TEXT):
        raise SourceError(f"{file} cannot be read: it is text, perhaps a playlist, expected a video")


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
        data = read_file(file, MAX_FILE_BYTES)
    except OSError as error:
        raise SourceError(f"{file} cannot be read: {error.strerror}") from error
    return _decode(data, file)


def _decode(data: bytes, name: str) -> np.ndarray:
    try:
        return decode_image(data)
    except PixelsError as error:
        raise SourceError(f"{name} {error}") from error


def _download(url: str) -> bytes:
    import http.client  # only where it is needed: `predict` is to start fast
    import urllib.request

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
    try:
        pixels = rgb_from_array(array)
    except PixelsError as error:
        raise SourceError(f"{kind} {error}") from error
    return ((image, None) for image in (pixels if pixels.ndim == 4 else [pixels]))


def _open_pil(image: Any) -> Iterator[tuple[np.ndarray, str | None]]:
    try:
        return iter([(rgb_from_pil(image), None)])
    except PixelsError as error:
        raise SourceError(f"a PIL image {error}") from error
    except (OSError, ValueError, SyntaxError) as error:  # Pillow reads the file only now
        name = getattr(image, "filename", "") or "without a file"
        raise SourceError(f"the PIL image {name} cannot be read: {error}") from error


def _array_of_tensor(tensor: Any) -> np.ndarray:
    """Channels last, from a tensor on any device; torch itself is not needed for it."""
    if tensor.ndim not in {2, 3, 4} or (tensor.ndim > 2 and tensor.shape[-3] not in CHANNELS):
        hint = ". Its channels seem to come last; move them with .permute(2, 0, 1)" if tensor.shape[-1:] == (3,) else ""
        raise SourceError(
            f"a tensor of shape {tuple(tensor.shape)} is not an image; expected 3×H×W RGB, 4×H×W RGBA or H×W gray, or "
            f"N×3×H×W for several{hint}"
        )
    tensor = tensor.detach().cpu()
    array = (tensor.float() if tensor.is_floating_point() else tensor).numpy()
    return array if array.ndim == 2 else np.ascontiguousarray(np.moveaxis(array, -3, -1))


@contextlib.contextmanager
def _quiet_opencv() -> Iterator[None]:
    """Silence OpenCV, which writes several lines to stderr about a video that it cannot open."""
    settings: Any = getattr(cv2.utils, "logging", cv2)  # OpenCV 4 has these at the top level
    level = settings.setLogLevel(0)
    try:
        yield
    finally:
        settings.setLogLevel(level)
