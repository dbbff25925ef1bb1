"""Predictions as CSV, COCO and YOLO."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pycocotools.coco import COCO

from rtdetrv4.runtime import Detections
from rtdetrv4.runtime.prediction_files import CocoFile, CsvFile, YoloFolder


def found_in(path: str | None, *, frame: int | None = None, ids: list[int] | None = None) -> Detections:
    """A cat and a dog in an image of 20×10."""
    return Detections(
        xyxy=np.array([[2, 1, 12, 9], [0, 0, 5, 2.5]], dtype=np.float32),
        confidence=np.array([0.75, 0.5], dtype=np.float32),
        class_id=np.array([1, 0]),
        names=("dog", "a, cat"),
        image=np.zeros((10, 20, 3), dtype=np.uint8),
        path=path,
        category_ids=(17, 5),
        frame_index=frame,
        time=None if frame is None else frame / 8,
        tracker_id=None if ids is None else np.array(ids),
    )


def nothing_in(path: str) -> Detections:
    return found_in(path)[:0]


def test_csv(tmp_path: Path) -> None:
    file = CsvFile(tmp_path)
    for detections in (found_in("a.jpg"), nothing_in("b.jpg"), found_in("c.mp4", frame=3, ids=[7, -1])):
        file.add(detections)
    rows = list(csv.DictReader((tmp_path / "predictions.csv").read_text().splitlines()))
    assert len(rows) == 4
    one = {"path": "a.jpg", "frame": "", "time": "", "class_id": "1", "category_id": "5", "name": "a, cat"}
    corners = {"x1": "2.00", "y1": "1.00", "x2": "12.00", "y2": "9.00"}
    assert rows[0] == one | corners | {"confidence": "0.75", "tracker_id": ""}
    later = {"path": "c.mp4", "frame": "3", "time": "0.375", "tracker_id": "7"}
    assert rows[2] == rows[0] | later
    assert rows[3]["tracker_id"] == ""
    with pytest.raises(FileExistsError):
        CsvFile(tmp_path)


def test_coco(tmp_path: Path) -> None:
    file = CocoFile(tmp_path)
    name = "caf\udce9.jpg"  # of a file that is not UTF-8
    for detections in (found_in(name), nothing_in("b.jpg"), found_in("c.mp4", frame=3, ids=[7, -1])):
        file.add(detections)
    assert list(tmp_path.iterdir()) == [], "nothing that could be taken for a result"
    file.close()
    content = json.loads((tmp_path / "predictions.coco.json").read_text())
    assert content["categories"] == [{"id": 17, "name": "dog"}, {"id": 5, "name": "a, cat"}]
    size = {"height": 10, "width": 20}
    assert content["images"] == [
        {"id": 1, "file_name": name, **size},
        {"id": 2, "file_name": "b.jpg", **size},
        {"id": 3, "file_name": "c.mp4", **size, "frame": 3, "time": 0.375},
    ]
    first = {"id": 1, "image_id": 1, "category_id": 5, "bbox": [2, 1, 10, 8], "area": 80, "iscrowd": 0, "score": 0.75}
    assert content["annotations"][0] == first
    assert content["annotations"][2] == first | {"id": 3, "image_id": 3, "track_id": 7}
    assert "track_id" not in content["annotations"][3]
    read = COCO(tmp_path / "predictions.coco.json")
    assert [len(read.getAnnIds([image])) for image in (1, 2, 3)] == [2, 0, 2]


def test_coco_of_nothing(tmp_path: Path) -> None:
    CocoFile(tmp_path).close()
    assert list(tmp_path.iterdir()) == []
    file = CocoFile(tmp_path)
    file.add(replace(nothing_in("a.jpg"), category_ids=None))
    file.close()
    content = json.loads((tmp_path / "predictions.coco.json").read_text())
    assert (len(content["images"]), content["annotations"]) == (1, [])
    assert content["categories"] == [{"id": 0, "name": "dog"}, {"id": 1, "name": "a, cat"}]


def test_yolo(tmp_path: Path) -> None:
    folder = YoloFolder(tmp_path, has_confidence=False)
    folder.add(found_in("a.jpg", ids=[7, -1]), "a")
    folder.add(nothing_in("b.jpg"), "b")
    lines = (tmp_path / "labels" / "a.txt").read_text().splitlines()
    assert lines == ["1 0.350000 0.500000 0.500000 0.800000", "0 0.125000 0.125000 0.250000 0.250000"]
    assert (tmp_path / "labels" / "b.txt").read_text() == "", "an image of nothing"
    assert (tmp_path / "labels" / "classes.txt").read_text() == "dog\na, cat\n"


@pytest.mark.parametrize(("ids", "ends"), [(None, ["0.75", "0.5"]), ([7, -1], ["0.75 7", "0.5 -1"])])
def test_yolo_with_confidences(tmp_path: Path, ids: list[int] | None, ends: list[str]) -> None:
    YoloFolder(tmp_path, has_confidence=True).add(found_in("a.jpg", ids=ids), "a")
    lines = (tmp_path / "labels" / "a.txt").read_text().splitlines()
    assert [" ".join(line.split()[5:]) for line in lines] == ends
