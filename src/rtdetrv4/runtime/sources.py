"""The sources of images: files, folders, URLs, videos, cameras, streams, pipes and arrays, read as RGB images."""

from __future__ import annotations

import contextlib
import functools
import glob
import inspect
import io
import itertools
import logging
import os
import re
import threading
import urllib.parse
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from rtdetrv4 import input_files
from rtdetrv4.errors import SourceError
from rtdetrv4.runtime.overlap import ReadAhead, close_iterator
from rtdetrv4.runtime.pipes import Pipe, read_pipe
from rtdetrv4.runtime.pixels import CHANNELS, MAX_FILE_BYTES, PixelsError, decode_image, rgb_from_array, rgb_from_pil
from rtdetrv4.runtime.prediction_lines import LINES_FILE, pictures_in
from rtdetrv4.runtime.urls import download, is_url, redacted
from rtdetrv4.runtime.videos import RECONNECT, Capture, Picture, check_reading, is_camera, name_of, read_file, read_live

logger: logging.Logger = logging.getLogger(__name__)

IMAGE_SUFFIXES = frozenset(
    {
        *(".avif", ".bmp", ".gif", ".heic", ".heif", ".jfif", ".jpe", ".jpeg", ".jpg", ".jp2", ".mpo"),
        *(".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp"),
    }
)
VIDEO_SUFFIXES = frozenset({".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm", ".wmv"})
LIVE_SUFFIXES = frozenset({".m3u8", ".mjpeg", ".mjpg", ".mpd"})
STREAM_SUFFIXES = VIDEO_SUFFIXES | LIVE_SUFFIXES | {".ts"}
"""How the paths of URLs of videos and streams end."""
LIST_SUFFIX = ".streams"
"""A text file that names a source in each line, which are read at once."""
HIDDEN = (".", "__MACOSX", "@eaDir")
"""How the names of files and folders begin that systems leave behind, such as ._photo.jpg of macOS."""
MAX_LOOKED_AT = 20_000
"""Files and folders below a folder that has images of its own, among which others are counted."""
_TEXT = bytes([9, 10, 13, *range(32, 127)])
"""The bytes of plain text."""


class Frame(NamedTuple):
    """One image of a source."""

    image: np.ndarray
    """H×W×3 uint8 RGB."""
    path: str | None
    """The file, URL or camera it came from, without passwords; None for images that were in memory."""
    number: int
    """Position in all that is read, counted from 0."""
    frame_index: int | None = None
    """Position in its video or stream, counted from 0; None for images that are in none."""
    time: float | None = None
    """Seconds: in a video file, from its beginning; in a camera, stream or pipe, since 1970 when the image came, never
    going back. None for other images, and for videos that do not say."""
    is_last: bool = False
    """Whether its video file ends with it. Streams do not know."""


class Reading(NamedTuple):
    """How videos and streams are read."""

    every: int = 1
    """Each of how many of their images to return."""
    latest: bool = False
    """Of cameras, streams and pipes, return the newest image only, and leave out those that came meanwhile."""
    reconnect: int = RECONNECT
    """How often to try to open a camera or stream again, each time it drops."""


def read_source(source: Any, *, every: int = 1, latest: bool = False, reconnect: int = RECONNECT) -> Iterator[Frame]:
    """Read images one at a time; files, videos and streams a little ahead, in a thread that ends with the iterator.

    Args:
        source: one of

            - the path of an image or a video; photos are rotated upright according to their EXIF data;
            - a folder (its images by name, or those of its subfolders if it has none of its own) or a glob pattern such
              as ``"photos/**/*.jpg"``; hidden files are skipped, and damaged ones and pictures that ``predict`` wrote
              there too, with a message;
            - the URL of an image, http(s), at most 64 MiB; or of a video or stream, http(s), ``rtsp://...`` and others;
            - a camera: its number, as 0 or "0", or its device, as "/dev/video0";
            - the path of a text file ending in .streams, with one of these in each line: they are read at once, and
              their images come in turn. Lines that begin with # are left out, and files are relative to its folder;
            - "-" for JPEG files, one after the other, on standard input, or a `Pipe` for other formats and files;
            - an image file opened with "rb", such as an upload, or its content as `bytes`;
            - a NumPy array, H×W×3 **RGB** (or N×H×W×3, H×W×4 RGBA, H×W gray): uint8, uint16, bool, or floats in [0, 1].
              OpenCV's arrays are BGR, which the values do not reveal: reverse their channels with ``image[..., ::-1]``;
            - a PIL image of any mode, rotated upright like the file it came from;
            - a torch tensor, 3×H×W RGB (or N×3×H×W, 4×H×W RGBA, H×W gray) of the same types;
            - a list, generator or other iterable of these, read one after the other; cameras and streams in a list or
              tuple, which never end, at once.
        every: each of how many images of videos and streams to return.
        latest: of cameras, streams and pipes, return the newest image only, and leave out those that came meanwhile.
            Files lose none.
        reconnect: how often to try to open a camera or stream again, each time it drops, with growing delays; 0 takes
            its end for the end.

    Raises:
        SourceError: the source does not exist or is of an unknown kind (raised at once); an image in it cannot be read,
            or a stream is gone (raised when its turn comes).
        ConfigError: a number is out of range.
    """
    frames = open_frames(source, Reading(every, latest, reconnect))
    return _without_pauses(frames)


def open_frames(source: Any, reading: Reading) -> Iterator[Frame | None]:
    """Do as `read_source`, and yield None where no further image has come yet, so that a batch need not wait."""
    check_reading(reading.every, reading.reconnect)
    return _numbered(_open(source, reading, None))


def check_names(names: Iterable[str]) -> None:
    """Check that the files and folders that are named exist, without a look into them.

    Raises:
        SourceError: one does not.
    """
    for name in names:
        is_other = not name.strip() or name == "-" or is_url(name) or name.isdecimal() or glob.has_magic(name)
        if not is_other and not input_files.exists(path := input_files.of_home(name)):
            raise _missing(path)


def _missing(path: Path) -> SourceError:
    return SourceError(f"{path} does not exist")


def _without_pauses(frames: Iterator[Frame | None]) -> Iterator[Frame]:
    try:
        for frame in frames:
            if frame is not None:
                yield frame
    finally:
        close_iterator(frames)


class _Shot(NamedTuple):
    """An image and where it came from."""

    image: np.ndarray
    path: str | None
    frame_index: int | None = None
    time: float | None = None
    is_last: bool = False
    is_live: bool = False


_Reader = Callable[[threading.Event], Iterator[_Shot | None]]


def _numbered(shots: Iterator[_Shot | None]) -> Iterator[Frame | None]:
    try:
        number = -1
        for shot in shots:
            if shot is None:
                yield None
                continue
            number += 1
            yield Frame(shot.image, shot.path, number, shot.frame_index, shot.time, shot.is_last)
    finally:
        close_iterator(shots)


def _open(source: Any, reading: Reading, stop: threading.Event | None) -> Iterator[_Shot | None]:
    """Open a source.

    Args:
        source: see `read_source`.
        reading: how to read.
        stop: ends the reading, where the caller is a thread that reads ahead; None: files and devices are read in a
            thread of their own.
    """
    if isinstance(source, str | os.PathLike):
        return _open_name(os.fspath(source), reading, stop)
    if isinstance(source, bool):
        raise _unknown(source)
    if isinstance(source, int | np.integer):
        return _open_video(int(source), reading, stop)
    if isinstance(source, Pipe):
        return _open_pipe(source, reading, stop)
    if isinstance(source, bytes | bytearray | memoryview):
        return iter([_Shot(_decode(bytes(source), "the image"), None)])
    if hasattr(source, "detach") and hasattr(source, "cpu"):
        return _open_array(_array_of_tensor(source), "a tensor")
    if isinstance(source, Image.Image):
        return _open_pil(source)
    if hasattr(source, "__array__") and (array := np.asarray(source)).dtype.kind not in "OUS":  # those hold names
        return _open_array(array, "an array")
    if hasattr(source, "read") and hasattr(source, "seek"):
        return iter([_Shot(_decode(_content(source), "the image"), None)])
    if isinstance(source, Iterable) and not isinstance(source, dict):
        return _open_each(source, reading, stop)
    raise _unknown(source)


def _unknown(source: Any) -> SourceError:
    return SourceError(
        f"cannot read images from {type(source).__name__}; give a path, folder, glob pattern, URL, camera number, "
        "NumPy array, PIL image, tensor, an open image file or its bytes, or a list of these"
    )


def _content(file: Any) -> bytes:
    """What is in an open file, from its beginning, as Pillow reads one.

    Raises:
        SourceError: it holds text, is closed, or has to be waited for.
    """
    if isinstance(file, io.TextIOBase):
        raise SourceError('cannot read images from a file opened as text; open it with "rb", or give its path')
    if inspect.iscoroutinefunction(file.read):
        raise SourceError(f"cannot wait for a {type(file).__name__}; give its content, or the file in it (.file)")
    try:
        with contextlib.suppress(OSError):  # the answer to a request cannot go back
            file.seek(0)
        content = file.read(MAX_FILE_BYTES)
    except ValueError as error:
        raise SourceError(f"cannot read an image from {type(file).__name__}: {error}") from error
    if not isinstance(content, bytes):
        raise _unknown(file)
    return content


def _open_each(sources: Iterable[Any], reading: Reading, stop: threading.Event | None) -> Iterator[_Shot | None]:
    """Several sources: one after the other, or at once if they would never end."""

    def in_turn(stop: threading.Event | None) -> Iterator[_Shot | None]:
        for source in sources:
            if stop is not None and stop.is_set():
                return
            yield from _open(source, reading, stop)

    if isinstance(sources, list | tuple):
        sources = [int(each) if isinstance(each, np.integer) else each for each in sources]
    if not isinstance(sources, list) or not all(isinstance(each, str | os.PathLike | int) for each in sources):
        return in_turn(stop)  # what makes these images may depend on what was found in the one before
    if len(sources) > 1 and any(map(_is_live, sources)):
        return _open_at_once(sources, reading)
    return _ahead([in_turn], reading) if stop is None else in_turn(stop)


def _is_live(source: str | os.PathLike[str] | int) -> bool:
    """Whether the name is that of a camera, or of a stream that never ends."""
    name = source if isinstance(source, int) else os.fspath(source)
    if isinstance(name, int) or (name.isdecimal() and not Path(name).exists()):
        return True
    if is_url(name):
        scheme = name.partition("://")[0].lower()
        suffix = Path(re.split(r"[?#]", name, maxsplit=1)[0]).suffix  # of anything, also of what is no valid URL
        return suffix.lower() in LIVE_SUFFIXES if scheme in {"http", "https"} else scheme != "file"
    return is_camera(name)


def _open_at_once(sources: Iterable[str | os.PathLike[str] | int], reading: Reading) -> Iterator[_Shot | None]:
    """Several sources, each read in a thread of its own; one that is gone does not end the others."""
    names: Counter[str] = Counter()
    problems: list[str] = []
    readers: list[_Reader] = []
    for source in sources:
        if not isinstance(source, int):
            source = _with_plain_scheme(os.fspath(source))
        name = name_of(source)
        names[name] += 1
        # Two cameras may differ in what is hidden of their URLs.
        suffix = f" ({names[name]})" if names[name] > 1 else ""
        readers.append(functools.partial(_read_beside, source, reading, suffix, problems))

    def shots() -> Iterator[_Shot | None]:
        ahead = _ahead(readers, reading, pauses=True)
        try:
            yield from ahead
        finally:
            close_iterator(ahead)
        if len(problems) == len(readers):
            raise SourceError(f"none of the {len(readers)} sources can be read any more; the last: {problems[-1]}")

    return shots()


def _read_beside(
    source: str | os.PathLike[str] | int, reading: Reading, suffix: str, problems: list[str], stop: threading.Event
) -> Iterator[_Shot]:
    """One of several sources: a stream that cannot be opened is tried again, since the others are worth reading."""

    def live() -> Iterator[_Shot]:
        target = _target_of(source)
        pictures = read_live(target, None, stop, every=reading.every, reconnect=reading.reconnect)
        return _shots(pictures, name_of(target), is_live=True)

    def open_source() -> Iterator[_Shot | None]:
        if _is_live(source):
            return live()
        try:
            return _open(source, reading, stop)
        except SourceError:
            if not (isinstance(source, str) and is_url(source)):
                raise
            return live()

    try:
        shots = open_source()
        try:
            for shot in shots:
                if shot is not None:
                    yield shot._replace(path=f"{shot.path}{suffix}")
        finally:
            close_iterator(shots)
    except SourceError as error:
        logger.warning("%s", error)
        problems.append(str(error))


def _ahead(readers: list[_Reader], reading: Reading, *, pauses: bool = False) -> Iterator[_Shot | None]:
    return ReadAhead(
        readers,
        size_of=_num_bytes,
        is_replaced=lambda shot: reading.latest and shot is not None and shot.is_live,
        pauses=pauses,
    )


def _num_bytes(shot: _Shot | None) -> int:
    return 0 if shot is None else shot.image.nbytes


def _shots(pictures: Iterator[Picture], path: str, *, is_live: bool) -> Iterator[_Shot]:
    try:
        for picture in pictures:
            yield _Shot(picture.image, path, picture.frame_index, picture.time, picture.is_last, is_live)
    finally:
        close_iterator(pictures)


def _open_name(name: str, reading: Reading, stop: threading.Event | None) -> Iterator[_Shot | None]:
    if not name.strip():
        raise SourceError("the path of the images is empty; if it comes from a variable of the shell, that is not set")
    if name == "-":
        return _open_pipe(Pipe.stdin(), reading, stop)
    name = _with_plain_scheme(name)
    if name.startswith("file://"):
        name = urllib.request.url2pathname(urllib.parse.urlsplit(name).path)
    if is_url(name):
        return _open_url(name, reading, stop)
    path = input_files.of_home(name)
    if input_files.is_folder(path):
        return _open_files(_images_in(path), reading, stop)
    if input_files.exists(path):
        if path.suffix.lower() == LIST_SUFFIX:
            names = _listed(path)
            return _open_at_once(names, reading) if len(names) > 1 else _open_name(names[0], reading, stop)
        return _open_file(str(path), reading, stop)
    if name.isdecimal():
        return _open_video(int(name), reading, stop)
    if not glob.has_magic(name):
        raise _missing(path)
    suffixes = IMAGE_SUFFIXES | VIDEO_SUFFIXES
    matches = glob.glob(str(path), recursive=True)  # noqa: PTH207 - Path.glob takes no absolute patterns
    fixed = len(list(itertools.takewhile(lambda part: not glob.has_magic(part), path.parts)))
    matches = [  # without what systems leave; glob itself leaves out what begins with a dot
        file for file in matches if not any(part.startswith(HIDDEN[1:]) for part in Path(file).parts[fixed:])
    ]
    files = sorted(file for file in matches if Path(file).suffix.lower() in suffixes)
    if not files:
        raise SourceError(f"no image or video matches {path}; {_what_is_there(str(path), matches)}")
    return _open_files(_without_own_pictures(files), reading, stop)


def _with_plain_scheme(name: str) -> str:
    """A URL with its scheme in lower case, as what opens it expects; other names as they are."""
    scheme, separator, rest = name.partition("://")
    return f"{scheme.lower()}://{rest}" if separator else name


def _target_of(source: str | os.PathLike[str] | int) -> str | int:
    """What OpenCV calls a camera or stream."""
    name = source if isinstance(source, int) else os.fspath(source)
    return int(name) if isinstance(name, str) and name.isdecimal() else name


def _listed(path: Path) -> list[str]:
    """The sources that a .streams file names."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError):
        raise SourceError(f"{path} cannot be read; expected a text file with a source in each line") from None
    names = [line.strip() for line in lines if line.strip() and not line.strip().startswith("#")]
    if not names:
        raise SourceError(f"{path} names no source; expected one in each line, such as rtsp://camera/stream")
    found = []
    for name in names:
        is_file = not (is_url(name) or (name.isdecimal() and not (path.parent / name).exists()))
        found.append(str(path.parent / Path(name).expanduser()) if is_file else name)
    if nested := [name for name in found if Path(name).suffix.lower() == LIST_SUFFIX or name == str(path.parent / "-")]:
        raise SourceError(f"{path} names {nested[0]}; expected cameras, streams, videos and images")
    return found


def _open_url(url: str, reading: Reading, stop: threading.Event | None) -> Iterator[_Shot | None]:
    if url.startswith(("http://", "https://")):
        suffix = Path(urllib.parse.urlsplit(url).path).suffix.lower()
        if suffix not in STREAM_SUFFIXES and (data := download(url)) is not None:
            return iter([_Shot(_decode(data, redacted(url)), redacted(url))])
    return _open_video(url, reading, stop)


def _open_pipe(pipe: Pipe, reading: Reading, stop: threading.Event | None) -> Iterator[_Shot | None]:
    def read(stop: threading.Event) -> Iterator[_Shot]:
        return _shots(read_pipe(pipe, stop, reading.every), pipe.name, is_live=True)

    # A thread that waits for data cannot be told to stop everywhere.
    if stop is None and pipe.can_wait:
        return _ahead([read], reading, pauses=True)
    return read(threading.Event() if stop is None else stop)


def _what_is_there(pattern: str, matches: list[str]) -> str:
    """What a pattern that matches no image matches, or what lies where it begins to be one."""
    if files := [file for file in matches if Path(file).is_file()]:
        return f"it matches {_kinds(files)}"
    parts = Path(pattern).parts
    fixed = list(itertools.takewhile(lambda part: not glob.has_magic(part), parts))
    folder = Path(*fixed)
    if not folder.is_dir():
        return f"{folder} does not exist"
    # With `**`, what the pattern would see; without, what lies in the folder itself.
    depth = "**" if "**" in parts else ""
    files = [file for file in glob.glob(str(folder / depth / "*"), recursive=True) if Path(file).is_file()]  # noqa: PTH207
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
        logger.warning('%s; to include them, give "%s"', left_out, Path(glob.escape(str(folder))) / "**")


def _is_image(name: str) -> bool:
    return Path(name).suffix.lower() in IMAGE_SUFFIXES and not name.startswith(HIDDEN)


def _open_file(file: str, reading: Reading, stop: threading.Event | None) -> Iterator[_Shot | None]:
    if is_camera(file):
        return _open_video(file, reading, stop)
    if Path(file).suffix.lower() in VIDEO_SUFFIXES:
        _require_video(file)
        return _open_video(file, reading, stop)
    return iter([_Shot(_read_image(file), file)])


def _require_video(file: str) -> None:
    """Check that a video is a file, and no text: of a playlist, a decoder would open other files that it names.

    Raises:
        SourceError: it is something else.
    """
    try:
        with input_files.open_file(file) as opened:
            start = opened.read(512)
    except OSError as error:
        raise SourceError(f"{file} cannot be read: {error.strerror}") from error
    if start and not start.translate(None, _TEXT):
        raise SourceError(f"{file} cannot be read: it is text, perhaps a playlist, expected a video")


def _open_files(files: Iterable[str], reading: Reading, stop: threading.Event | None) -> Iterator[_Shot | None]:
    """The images of files found in a folder or by a pattern: a damaged one is skipped."""

    def read(stop: threading.Event) -> Iterator[_Shot | None]:
        num_read = 0
        for file in files:
            try:
                shots = _open_file(file, reading, stop)
            except SourceError as error:
                logger.warning("%s; skipped", error)
                continue
            num_read += 1
            yield from shots
        if not num_read:
            raise SourceError("none of the images could be read; the warnings above name them")

    return _ahead([read], reading) if stop is None else read(stop)


def _read_image(file: str) -> np.ndarray:
    try:
        data = input_files.read_file(file, MAX_FILE_BYTES)
    except OSError as error:
        raise SourceError(f"{file} cannot be read: {error.strerror}") from error
    return _decode(data, file)


def _decode(data: bytes, name: str) -> np.ndarray:
    try:
        return decode_image(data)
    except PixelsError as error:
        raise SourceError(f"{name} {error}") from error


def _open_video(target: str | int, reading: Reading, stop: threading.Event | None) -> Iterator[_Shot | None]:
    """A video file, camera or stream. That it cannot be opened is known at once."""
    capture = Capture(target)

    def read(stop: threading.Event) -> Iterator[_Shot]:
        if capture.is_live:
            pictures = read_live(target, capture, stop, every=reading.every, reconnect=reading.reconnect)
        else:
            pictures = read_file(capture, reading.every)
        return _shots(pictures, capture.name, is_live=capture.is_live)

    return _ahead([read], reading, pauses=capture.is_live) if stop is None else read(stop)


def _open_array(array: np.ndarray, kind: str) -> Iterator[_Shot | None]:
    try:
        pixels = rgb_from_array(array)
    except PixelsError as error:
        raise SourceError(f"{kind} {error}") from error
    return (_Shot(image, None) for image in (pixels if pixels.ndim == 4 else [pixels]))


def _open_pil(image: Any) -> Iterator[_Shot | None]:
    try:
        return iter([_Shot(rgb_from_pil(image), None)])
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
