"""Metrics of an exported file are those of the model in PyTorch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest

import golden
from rtdetrv4.data.dataset import DetectionDataset
from rtdetrv4.data.loader import build_loader
from rtdetrv4.data.records import Record, Split
from rtdetrv4.evaluation import CocoEvaluator, evaluate_exported, evaluate_run
from rtdetrv4.models import fuse
from rtdetrv4.runtime import ExportedDetector
from rtdetrv4.training import validate
from rtdetrv4.types import ImageInfo

from .conftest import ANIMALS, Exported

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
