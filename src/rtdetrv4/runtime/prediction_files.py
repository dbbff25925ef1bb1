"""Predictions in the formats of others: CSV, COCO and YOLO. What is written grows with the images, memory does not."""

from __future__ import annotations

import csv
import io
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from rtdetrv4.outputs import write_text, write_whole
from rtdetrv4.runtime.detections import Detections

CSV_FILE = "predictions.csv"
COCO_FILE = "predictions.coco.json"
YOLO_FOLDER = "labels"
NAMES_STEM = "classes"
"""The file of class names among the labels, which no image may be called."""
CSV_COLUMNS = (
    *("path", "frame", "time", "class_id", "category_id", "name", "confidence"),
    *("x1", "y1", "x2", "y2", "tracker_id"),
)


class CsvFile:
    """A row for each detection, written at once; empty cells where a value does not exist.

    Args:
        folder: where predictions.csv goes, which must not exist.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / CSV_FILE
        self._append([CSV_COLUMNS], mode="xb")

    def add(self, detections: Detections) -> None:
        """Write the detections of an image."""
        self._append([_row(detections, values) for values in detections.to_dicts()])

    def close(self) -> None:
        """Do nothing: the file is complete."""

    def _append(self, rows: list[Any], mode: str = "ab") -> None:
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(rows)
        # Unbuffered, so that the rows of an image are written as a whole.
        with self._path.open(mode, buffering=0) as file:
            file.write(text.getvalue().encode("utf-8", "backslashreplace"))


def _row(detections: Detections, values: dict[str, Any]) -> tuple[Any, ...]:
    time = "" if detections.time is None else f"{detections.time:.3f}"
    corners = (f"{side:.2f}" for side in values["xyxy"])
    return (
        *(detections.path, detections.frame_index, time, values["class_id"], values["category_id"], values["name"]),
        *(f"{values['confidence']:.6g}", *corners, values.get("tracker_id")),
    )


class CocoFile:
    """A COCO data set with the detections as annotations, which `close` writes: images, categories and annotations.

    Annotations have a "score" and, with tracking, a "track_id"; images of videos a "frame" and a "time".

    Args:
        folder: where predictions.coco.json goes.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / COCO_FILE
        # Files without names, which vanish with the process.
        self._images = tempfile.TemporaryFile("w+", dir=folder, encoding="utf-8")  # noqa: SIM115 - closed in `close`
        self._annotations = tempfile.TemporaryFile("w+", dir=folder, encoding="utf-8")  # noqa: SIM115
        self._categories: list[dict[str, Any]] = []
        self._num_images = self._num_annotations = 0

    def add(self, detections: Detections) -> None:
        """Take up the detections of an image."""
        if not self._num_images:
            ids = detections.category_ids or range(len(detections.names))
            self._categories = [{"id": i, "name": name} for i, name in zip(ids, detections.names, strict=True)]
        self._num_images += 1
        height, width = detections.image.shape[:2] if detections.image is not None else (None, None)
        image = {"id": self._num_images, "file_name": detections.path or f"image {self._num_images}"}
        image |= {"height": height, "width": width}
        if detections.frame_index is not None:
            image |= {"frame": detections.frame_index, "time": detections.time}
        self._write(self._images, image, self._num_images)
        for values in detections.to_dicts():
            self._num_annotations += 1
            left, top, right, bottom = values["xyxy"]
            annotation = {
                "id": self._num_annotations,
                "image_id": self._num_images,
                "category_id": values["category_id"],
                "bbox": [round(side, 2) for side in (left, top, right - left, bottom - top)],
                "area": round((right - left) * (bottom - top), 2),
                "iscrowd": 0,
                "score": round(values["confidence"], 5),
            }
            if values.get("tracker_id") is not None:
                annotation["track_id"] = values["tracker_id"]
            self._write(self._annotations, annotation, self._num_annotations)

    def close(self) -> None:
        """Write the file."""
        with self._images, self._annotations:
            if self._num_images:
                write_whole(self._path, self._assemble)

    def _assemble(self, path: Path) -> None:
        with path.open("w", encoding="utf-8") as file:
            for name, part in (("images", self._images), ("annotations", self._annotations)):
                part.seek(0)
                file.write(f'{{"{name}": [\n' if name == "images" else f'\n],\n"{name}": [\n')
                shutil.copyfileobj(part, file)
            file.write(f'\n],\n"categories": {json.dumps(self._categories, ensure_ascii=True)}}}\n')

    @staticmethod
    def _write(file: Any, content: dict[str, Any], number: int) -> None:
        file.write((",\n" if number > 1 else "") + json.dumps(content))  # ASCII, for names that are not UTF-8


class YoloFolder:
    """A text file for each image, named after its picture: "class x y w h" in [0, 1], with the center of the box.

    Args:
        folder: where the folder `labels` goes.
        has_confidence: append the confidence and, with tracking, the id or -1, as no training reads them.
    """

    def __init__(self, folder: Path, *, has_confidence: bool) -> None:
        self._folder = folder / YOLO_FOLDER
        self._has_confidence = has_confidence
        self._has_names = False

    def add(self, detections: Detections, stem: str) -> None:
        """Write the detections of an image, or an empty file if there are none."""
        if not self._has_names:
            names = [" ".join(name.split()) for name in detections.names]
            write_text(self._folder / f"{NAMES_STEM}.txt", "\n".join(names) + "\n", errors="backslashreplace")
            self._has_names = True
        lines = []
        assert detections.image is not None
        height, width = detections.image.shape[:2]
        for values in detections.to_dicts():
            left, top, right, bottom = values["xyxy"]
            center = ((left + right) / 2 / width, (top + bottom) / 2 / height)
            sides = ((right - left) / width, (bottom - top) / height)
            cells = [str(values["class_id"]), *(f"{value:.6f}" for value in (*center, *sides))]
            if self._has_confidence:
                cells.append(f"{values['confidence']:.6g}")
                if "tracker_id" in values:
                    cells.append(str(-1 if values["tracker_id"] is None else values["tracker_id"]))
            lines.append(" ".join(cells) + "\n")
        write_text(self._folder / f"{stem}.txt", "".join(lines))

    def close(self) -> None:
        """Do nothing: the files are complete."""
