"""Metrics of an exported file are those of the model in PyTorch."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest

import golden
from rtdetrv4.data.dataset import DetectionDataset
from rtdetrv4.data.loader import build_loader
from rtdetrv4.data.records import Record, Split
from rtdetrv4.errors import DatasetError, ExportError
from rtdetrv4.evaluation import CocoEvaluator, evaluate_exported, evaluate_run
from rtdetrv4.export import GraphOptions
from rtdetrv4.exported_detector import ExportedDetector as TopExportedDetector
from rtdetrv4.models import fuse
from rtdetrv4.runtime import ExportedDetector
from rtdetrv4.runtime.engines import open_engine
from rtdetrv4.training import validate
from rtdetrv4.types import ImageInfo

from .conftest import ANIMALS, Exported, export

NUM_IMAGES = 3


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of different shapes."""
    folder = tmp_path_factory.mktemp("images")
    for number in range(NUM_IMAGES):
        picture = golden.image(number, 80, 100 + 20 * number).transpose(1, 2, 0)
        cv2.imwrite(str(folder / f"{number}.png"), (255 * picture).astype(np.uint8))
    return folder


def a_split(folder: Path, truth: list[tuple[np.ndarray, np.ndarray]]) -> Split:
    """The images with boxes (n, 4) in pixels and labels (n,)."""
    records = [
        Record(
            ImageInfo(number, f"{number}.png", 80, 100 + 20 * number),
            boxes.astype(np.float32),
            labels,
            np.zeros(len(labels), dtype=bool),
            (boxes[:, 2:] - boxes[:, :2]).prod(axis=1).astype(np.float64),
        )
        for number, (boxes, labels) in enumerate(truth)
    ]
    return Split(folder, records, ANIMALS, "", ())


def test_metrics_are_those_of_pytorch(square: Exported, images: Path) -> None:
    """The truth is some of what PyTorch finds, so that AP is neither 0 nor 1."""
    nothing = (np.zeros((0, 4)), np.zeros(0, dtype=np.int64))
    detector = fuse(square.model).eval()

    def in_torch(split: Split) -> CocoEvaluator:
        evaluator = CocoEvaluator(split.records, ANIMALS)
        loader = build_loader(DetectionDataset(split, (64, 64)), 2, 0, shuffle=False)
        validate(detector, loader, evaluator, image_size=(64, 64))
        return evaluator

    found = in_torch(a_split(images, [nothing] * NUM_IMAGES)).detections
    truth = [(each.boxes_xyxy_px[2:30:5].clip(0, 100), each.labels[2:30:5]) for each in found]
    split = a_split(images, truth)
    expected = in_torch(split)
    for batch in (1, 2):
        actual = CocoEvaluator(split.records, ANIMALS)
        metrics = evaluate_exported(ExportedDetector(square.path), split, actual, batch=batch)
        wanted = expected.compute()
        assert 0.05 < wanted.ap < 0.95
        for name in ("ap", "ap50", "ap75", "ar1", "ar100"):
            assert getattr(metrics, name) == pytest.approx(getattr(wanted, name), abs=1e-3)
        for one, other in zip(expected.detections, actual.detections, strict=True):
            assert len(one.scores) == len(other.scores)
            np.testing.assert_allclose(other.scores, one.scores, atol=1e-4)
            same = one.labels == other.labels  # nearly tied ones may have swapped places
            assert same.mean() > 0.9
            np.testing.assert_allclose(other.boxes_xyxy_px[same][:20], one.boxes_xyxy_px[same][:20], atol=0.05)


def test_boxes_count_as_the_model_gives_them(images: Path) -> None:
    """Without clipping to the image, as in `val`: an export's AP must be comparable with it."""
    split = a_split(images, [(np.array([[0.0, 0, 100, 80]]), np.array([0]))])
    evaluator = CocoEvaluator(split.records, ANIMALS)

    def run(pixels: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        assert [image.shape for image in pixels] == [(80, 100, 3)]
        return np.array([[0.9]], np.float32), np.array([[0]]), np.array([[[-0.5, 0.0, 1.0, 1.0]]])

    metrics = evaluate_run(run, split, evaluator, image_size=(64, 64))
    np.testing.assert_allclose(evaluator.detections[0].boxes_xyxy_px, [[-50, 0, 100, 80]])
    assert metrics.ap50 == pytest.approx(1)
    assert metrics.ap75 == pytest.approx(0)  # an IoU of 2/3


def test_a_file_of_some_classes_is_evaluated_on_these(square: Exported, images: Path, tmp_path: Path) -> None:
    """The others of the model are in the data set, and are no mistake; classes that the model never knew are."""
    path = tmp_path / "some.onnx"
    export(square.model, path, options=GraphOptions(classes=(2, 0)))
    names = ANIMALS.names
    detector = TopExportedDetector(path)
    assert detector.metadata.left_out == (names[1],)
    assert open_engine(square.path).metadata.left_out is None
    boxes = [{"id": i, "image_id": i // 3, "category_id": i % 3, "bbox": [10, 10, 30, 20 + i]} for i in range(9)]
    content = {
        "images": [{"id": i, "file_name": f"{i}.png", "height": 80, "width": 100 + 20 * i} for i in range(NUM_IMAGES)],
        "annotations": [{**box, "area": 600, "iscrowd": 0} for box in boxes],
        "categories": [{"id": i, "name": name} for i, name in enumerate(names)],
    }
    folder = tmp_path / "data" / "valid"
    shutil.copytree(images, folder)
    (folder / "_annotations.coco.json").write_text(json.dumps(content))
    metrics = detector.val(tmp_path / "data")
    assert metrics.per_class.keys() == {names[2], names[0]}
    whole = TopExportedDetector(square.path).val(tmp_path / "data")
    assert metrics.per_class == pytest.approx({name: whole.per_class[name] for name in (names[2], names[0])}, abs=1e-3)
    content["categories"][0]["name"] = "unheard of"
    (folder / "_annotations.coco.json").write_text(json.dumps(content))
    with pytest.raises(DatasetError, match='of class "unheard of", which is not one of the 3 classes'):
        detector.val(tmp_path / "data")


def test_nothing_but_nan_is_an_error(square: Exported, images: Path, caplog: pytest.LogCaptureFixture) -> None:
    split = a_split(images, [(np.zeros((0, 4)), np.zeros(0, dtype=np.int64))] * NUM_IMAGES)
    detector = ExportedDetector(square.path)
    right = detector.run

    def broken(number: float, pictures: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        scores, labels, boxes = right(pictures)
        return np.full_like(scores, np.nan) if pictures[0].shape[1] > number else scores, labels, boxes

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(detector, "run", partial(broken, 0))
        with pytest.raises(ExportError, match="returns NaN or infinite numbers for every image"):
            evaluate_exported(detector, split)
        patch.setattr(detector, "run", partial(broken, 105))
        caplog.clear()
        evaluate_exported(detector, split)
    assert [record.message for record in caplog.records] == [
        "detections in 1.png are NaN or infinite; they and others like them are ignored"
    ]
