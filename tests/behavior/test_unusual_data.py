"""Data that crashed or silently spoiled others: each trains, evaluates and predicts."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest

from rtdetrv4 import DatasetError, Detector


def write_data(
    folder: Path, category_ids: Sequence[int], boxes_per_image: Sequence[int], size_hw: tuple[int, int]
) -> Path:
    """Colored rectangles in the Roboflow layout, the same for training and validation."""
    rng = np.random.default_rng(0)
    for split in ("train", "valid"):
        (folder / split).mkdir(parents=True)
        images, annotations = [], []
        for index, count in enumerate(boxes_per_image):
            image = rng.integers(0, 60, (*size_hw, 3), dtype=np.uint8)
            for _ in range(count):
                width, height = (int(side * rng.uniform(0.2, 0.4)) for side in size_hw[::-1])
                x, y = int(rng.integers(size_hw[1] - width)), int(rng.integers(size_hw[0] - height))
                label = int(rng.integers(len(category_ids)))
                image[y : y + height, x : x + width, label % 3] = 255
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": index,
                        "category_id": category_ids[label],
                        "bbox": [x, y, width, height],
                        "area": width * height,
                        "iscrowd": 0,
                    }
                )
            cv2.imwrite(str(folder / split / f"{index}.png"), image)
            images.append({"id": index, "file_name": f"{index}.png", "height": size_hw[0], "width": size_hw[1]})
        categories = [{"id": number, "name": f"class {number}"} for number in category_ids]
        content = {"images": images, "annotations": annotations, "categories": categories}
        (folder / split / "_annotations.coco.json").write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize(
    ("category_ids", "boxes_per_image", "size_hw"),
    [
        pytest.param((1, 2), (0, 0, 0, 0, 0, 0, 2, 1), (64, 64), id="batches without any box"),
        pytest.param((30056,), (1, 2, 1, 1), (64, 64), id="one class"),
        pytest.param((7, 30056), (2, 1, 0, 3), (64, 64), id="sparse category ids"),
        pytest.param((0, 1), (2, 1, 1, 3), (64, 128), id="rectangles"),
    ],
)
def test_trains_evaluates_and_predicts(
    tmp_path: Path, category_ids: tuple[int, ...], boxes_per_image: tuple[int, ...], size_hw: tuple[int, int]
) -> None:
    data = write_data(tmp_path / "data", category_ids, boxes_per_image, size_hw)
    detector = Detector("test")
    result = detector.train(data, imgsz=size_hw, batch=2, epochs=2, out=tmp_path / "run")
    assert detector.classes is not None
    assert detector.classes.category_ids == category_ids
    assert detector.names == tuple(f"class {number}" for number in category_ids)
    assert result.metrics is not None
    assert 0 <= result.metrics.ap <= 1
    assert set(result.metrics.per_class) == set(detector.names)
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert all(np.isfinite(line["losses"]["loss"]) for line in lines if "losses" in line)
    (found,) = detector.predict(data / "valid" / "0.png", conf=0.0)
    assert found.class_id.max() < len(category_ids)
    assert (found.xyxy[:, 2] <= size_hw[1]).all()
    assert (found.xyxy[:, 3] <= size_hw[0]).all()


def test_a_damaged_image_is_reported_and_skipped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = write_data(tmp_path / "data", (1,), [1] * 12, (64, 64))
    damaged = data / "train" / "5.png"
    damaged.write_bytes(damaged.read_bytes()[:200])
    with caplog.at_level(logging.WARNING):
        result = Detector("test").train(data, epochs=2, out=tmp_path / "run")
    reports = [record.getMessage() for record in caplog.records if "5.png" in record.getMessage()]
    assert len(reports) == 1
    assert "damaged" in reports[0]
    assert result.weights.is_file()


def test_a_damaged_validation_image_takes_nothing_away(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = write_data(tmp_path / "data", (1,), [1] * 6, (64, 64))
    damaged = data / "valid" / "0.png"
    damaged.write_bytes(damaged.read_bytes()[:200])
    with caplog.at_level(logging.WARNING):
        result = Detector("test").train(data, epochs=1, out=tmp_path / "run")
    assert "0.png is damaged or not an image" in caplog.text
    assert "left out of the evaluation" in caplog.text
    assert result.metrics is not None
    assert result.metrics.num_images == 5
    assert (tmp_path / "run" / "predictions.jpg").is_file()
    assert (tmp_path / "run" / "val" / "metrics.json").is_file()


def test_training_on_nothing_is_refused_and_validating_on_nothing_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = write_data(tmp_path / "data", (1,), [1] * 4, (64, 64))
    file = data / "valid" / "_annotations.coco.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"annotations": []}))
    with caplog.at_level(logging.WARNING):
        result = Detector("test").train(data, epochs=1, out=tmp_path / "run")
    assert "val: no image has a box: all are background" in caplog.text
    assert "nothing to measure: the last weights will count as the best" in caplog.text
    assert result.weights.is_file()
    assert result.metrics is not None
    assert np.isnan(result.metrics.ap)
    file.rename(data / "train" / "_annotations.coco.json")
    with pytest.raises(DatasetError, match="nothing to train on: none of the 3 training images"):
        Detector("test").train(data, epochs=1, out=tmp_path / "other")
    assert not (tmp_path / "other").exists()
