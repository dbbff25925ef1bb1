"""The folder that predictions are written to."""

from __future__ import annotations

import contextlib
import logging
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from rtdetrv4.errors import ConfigError, did_you_mean
from rtdetrv4.outputs import find_unused_folder, make_folder, tell_unused_folder
from rtdetrv4.runtime.detections import Detections
from rtdetrv4.runtime.prediction_files import (
    COCO_FILE,
    CSV_FILE,
    NAMES_STEM,
    YOLO_FOLDER,
    CocoFile,
    CsvFile,
    YoloFolder,
)
from rtdetrv4.runtime.prediction_lines import LINES_FILE
from rtdetrv4.runtime.sources import IMAGE_SUFFIXES, STREAM_SUFFIXES
from rtdetrv4.runtime.urls import is_url
from rtdetrv4.runtime.video_writer import EXTRA, VideoWriter, can_write_video, check_video

logger: logging.Logger = logging.getLogger(__name__)

KINDS = ("pictures", "video", "jsonl", "csv", "coco", "yolo", "yolo-conf")
"""What can be written."""
MAX_STEM_BYTES = 200
"""Of the names of pictures: file systems take 255, and numbers, endings and a mark of what is unfinished are added."""
_FILES = {"csv": CSV_FILE, "coco": COCO_FILE, "yolo": YOLO_FOLDER, "yolo-conf": YOLO_FOLDER}


class PredictionFolder:
    """Annotated pictures and videos, and predictions in several formats. No file that is there is written over.

    ```python
    with PredictionFolder("found", ["video", "csv"]) as results:
        for detections in detector.predict("clip.mp4", stream=True):
            results.add(detections)
    ```

    Pictures are called after their sources, photo.png → photo.jpg, or photo-found.jpg in a folder that has pictures
    already, such as that of the sources. Numbers tell apart the frames of a video and sources of the same name:
    photo-000001.jpg is the second one.

    Args:
        path: made with the first result; if it has results already, path-2, path-3, … takes its place, which is said
            with the first result, too.
        kinds: what to write, of `KINDS`: "pictures" and "video" (of videos and streams; other images get pictures) with
            boxes drawn, "jsonl" (predictions.jsonl, a JSON object per image; it comes with pictures and videos, because
            it tells them from the sources), "csv", "coco", "yolo", or "yolo-conf" with confidences. None: pictures of
            images, videos of videos (without PyAV, a picture of each frame), and "jsonl".

    Attributes:
        path: the folder.
        num_images: images whose results are complete.

    Raises:
        ConfigError: there is no such kind; or as `unused_folder`.
        MissingDependencyError: "video" is wanted and PyAV is not installed.
    """

    def __init__(self, path: str | Path, kinds: Sequence[str] | None = None) -> None:
        for kind in kinds or ():
            if kind not in KINDS:
                raise ConfigError(f'save: got "{kind}", expected {", ".join(KINDS)}.{did_you_mean(kind, KINDS)}')
        if kinds is not None and {"yolo", "yolo-conf"} <= set(kinds):
            raise ConfigError("save: yolo and yolo-conf write the same files; give one of them.")
        if kinds is not None and "video" in kinds:
            check_video()
        self._is_given = kinds is not None
        self._kinds = {"jsonl", "pictures", "video"} if kinds is None else set(kinds)
        if {"pictures", "video"} & self._kinds:
            self._kinds.add("jsonl")
        self._given = Path(path)
        self.path: Path = find_unused_folder(
            self._given, (LINES_FILE, *(_FILES[kind] for kind in self._kinds & set(_FILES)))
        )
        self.num_images: int = 0
        has_pictures = self.path.is_dir() and any(
            f.suffix.lower() in IMAGE_SUFFIXES | STREAM_SUFFIXES for f in self.path.iterdir()
        )
        self._ending = "-found" if has_pictures and {"pictures", "video"} & self._kinds else ""
        self._counts: Counter[str] = Counter()
        self._videos: dict[str | None, VideoWriter] = {}
        self._files: list[CsvFile | CocoFile] = []
        self._yolo: YoloFolder | None = None
        self._is_closed = self._has_told = False

    def __enter__(self) -> PredictionFolder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __str__(self) -> str:
        return f"{self.num_images} images in {self.path}" if self.num_images else "nothing"

    @property
    def writes(self) -> bool:
        """Whether anything is written."""
        return bool(self._kinds)

    def add(self, detections: Detections) -> str:
        """Write the results of an image.

        Returns:
            The name of the picture or video that shows it; without one, that of the source.
        """
        with self._named_errors():
            if not self.num_images:
                self._begin()
            drawn = self._drawn(detections)
            files = ["{}.jpg"] if "picture" in drawn else []
            if self._yolo is not None:
                files.append(f"{YOLO_FOLDER}/{{}}.txt")
            stem = self._unused_stem(detections.path, files) if files else ""
            names: dict[str, str] = {}
            if "picture" in drawn:
                names["picture"] = f"{stem}.jpg"
                detections.save(self.path / names["picture"])
            if "video" in drawn:
                names["video"] = self._add_to_video(detections)
            if "jsonl" in self._kinds:
                self._write_line(detections, names)
            for file in self._files:
                file.add(detections)
            if self._yolo is not None:
                self._yolo.add(detections, stem)
        self.num_images += 1
        if "picture" in names:
            return names["picture"]
        name = names.get("video") or _stem_of(detections.path)
        return name if detections.frame_index is None else f"{name}, frame {detections.frame_index}"

    def close(self) -> None:
        """Complete videos and files that hold the results of all images."""
        if self._is_closed:
            return
        self._is_closed = True
        with self._named_errors(), contextlib.ExitStack() as stack:  # all of them, even if one fails
            for file in (*self._videos.values(), *self._files):
                stack.callback(file.close)
        self._videos.clear()

    @contextlib.contextmanager
    def _named_errors(self) -> Iterator[None]:
        """Name the folder in errors such as that of a full disk, which come without a name."""
        try:
            yield
        except OSError as error:
            if error.filename is not None or error.strerror is None:
                raise
            raise OSError(error.errno, error.strerror, str(self.path)) from error

    def _begin(self) -> None:
        if not self._kinds:
            return
        tell_unused_folder(self._given, self.path)
        make_folder(self.path)
        if "csv" in self._kinds:
            self._files.append(CsvFile(self.path))
        if "coco" in self._kinds:
            self._files.append(CocoFile(self.path))
        if yolo := self._kinds & {"yolo", "yolo-conf"}:
            self._yolo = YoloFolder(self.path, has_confidence="yolo-conf" in yolo)

    def _drawn(self, detections: Detections) -> set[str]:
        """Whether the image becomes a picture, a part of a video, or both."""
        wanted = self._kinds & {"pictures", "video"}
        if detections.frame_index is None or not wanted:
            return {"picture"} if wanted else set()
        if self._is_given:
            return {"picture" if kind == "pictures" else kind for kind in wanted}
        if can_write_video():
            return {"video"}
        if not self._has_told:
            self._has_told = True
            logger.info('Videos become pictures, because PyAV is missing: pip install "rtdetrv4[%s]"', EXTRA)
        return {"picture"}

    def _write_line(self, detections: Detections, shown: dict[str, str]) -> None:
        # A file name that is not UTF-8 becomes an escape that JSON readers turn back into the name.
        line = (detections.to_json(**shown) + "\n").encode(errors="backslashreplace")
        # Unbuffered, so that the line is written as a whole. The file must be new, if another process was faster.
        with Path(self.path, LINES_FILE).open("ab" if self.num_images else "xb", buffering=0) as lines:
            lines.write(line)

    def _add_to_video(self, detections: Detections) -> str:
        writer = self._videos.get(detections.path)
        if writer is None:
            stem = _stem_of(detections.path) + self._ending
            names = (stem if number == 1 else f"{stem}-{number}" for number in range(1, 1_000_000))
            for name in names:
                with contextlib.suppress(FileExistsError):
                    writer = self._videos[detections.path] = VideoWriter(self.path / f"{name}.mp4")
                    break
        assert writer is not None
        writer.add(detections.plot(), detections.time)
        if detections.is_last:
            del self._videos[detections.path]
            writer.close()
        return writer.path.name

    def _unused_stem(self, source: str | None, files: Sequence[str]) -> str:
        stem = _stem_of(source) + self._ending
        while True:
            number = self._counts[stem]
            self._counts[stem] += 1
            name = f"{stem}-{number:06d}" if number else stem
            is_taken = self._yolo is not None and name.casefold() == NAMES_STEM
            if not is_taken and not any(os.path.lexists(self.path / each.format(name)) for each in files):
                return name


def _stem_of(source: str | None) -> str:
    """What pictures of a source are called; short enough for what is added to it."""
    stem = os.fsencode(_whole_stem_of(source))
    return (
        os.fsdecode(stem) if len(stem) <= MAX_STEM_BYTES else stem[:MAX_STEM_BYTES].decode(errors="ignore") or "frame"
    )


def _whole_stem_of(source: str | None) -> str:
    """The name of a source without its ending; no password and no query is part of it."""
    if source is None:
        return "frame"
    if not is_url(source):
        return Path(source).stem or "frame"
    url, _, number = source.partition(" ")  # which tells two streams apart that are called the same
    parts = urlsplit(url)
    path = Path(parts.path)
    if path.suffix.lower() in IMAGE_SUFFIXES:
        return path.stem
    if path.suffix.lower() in STREAM_SUFFIXES:
        path = path.with_suffix("")
    words = (parts.hostname or "", *path.parts, number)
    return "-".join(filter(None, (re.sub(r"[^\w.-]+", "-", word).strip("-.") for word in words))) or "stream"
