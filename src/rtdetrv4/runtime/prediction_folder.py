"""The folder that predictions are written to."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

from rtdetrv4.outputs import find_unused_folder, tell_unused_folder
from rtdetrv4.runtime.detections import Detections
from rtdetrv4.runtime.prediction_lines import LINES_FILE
from rtdetrv4.runtime.sources import IMAGE_SUFFIXES


class PredictionFolder:
    """Annotated pictures, and a JSON object per image in predictions.jsonl. No file that is there is written over.

    Pictures are called after their sources, photo.png → photo.jpg, or photo-found.jpg in a folder that has pictures
    already, such as that of the sources. Numbers tell apart the frames of a video and sources of the same name:
    photo-000001.jpg is the second one.

    Args:
        path: made with the first result; if it has a predictions.jsonl, path-2, path-3, … takes its place, which is
            said with the first result, too.

    Raises:
        ConfigError: as `unused_folder`.
    """

    def __init__(self, path: str | Path) -> None:
        self._given = Path(path)
        self.path = find_unused_folder(self._given, (LINES_FILE,))
        self.num_images = 0
        """Images whose results are complete."""
        has_pictures = self.path.is_dir() and any(f.suffix.lower() in IMAGE_SUFFIXES for f in self.path.iterdir())
        self._ending = "-found" if has_pictures else ""
        self._counts: Counter[str] = Counter()

    def __str__(self) -> str:
        return f"{self.num_images} images in {self.path}" if self.num_images else "nothing"

    def add(self, detections: Detections) -> str:
        """Write the results of an image, and return the name of the picture."""
        if not self.num_images:
            tell_unused_folder(self._given, self.path)
        picture = self._unused_name(detections.path)
        detections.save(self.path / picture)
        # A file name that is not UTF-8 becomes an escape that JSON readers turn back into the name.
        line = (detections.to_json(picture=picture) + "\n").encode(errors="backslashreplace")
        # Unbuffered, so that the line is written as a whole. The file must be new, if another process was faster.
        with Path(self.path, LINES_FILE).open("ab" if self.num_images else "xb", buffering=0) as lines:
            lines.write(line)
        self.num_images += 1
        return picture

    def _unused_name(self, source: str | None) -> str:
        stem = (Path(source or "frame").stem or "frame") + self._ending
        while True:
            number = self._counts[stem]
            self._counts[stem] += 1
            name = f"{stem}-{number:06d}.jpg" if number else f"{stem}.jpg"
            if not os.path.lexists(self.path / name):
                return name
