from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rtdetrv4.data.dataset import DetectionDataset
from rtdetrv4.data.formats import read_coco
from rtdetrv4.data.loader import build_loader
from rtdetrv4.data.records import Split
from rtdetrv4.evaluation import CocoEvaluator
from rtdetrv4.runtime import Detections
from rtdetrv4.runtime.preprocess import ResizeMode
from rtdetrv4.training import validate, validate_predictions
from rtdetrv4.types import DetectorOutput

SIZES_HW = ((48, 64), (64, 48), (30, 97), (50, 50))


@pytest.fixture
def split(tmp_path: Path) -> Split:
    """Images of several shapes: black, with a white rectangle that is the object."""
    images, annotations = [], []
    for index, (height, width) in enumerate(SIZES_HW):
        left, top, right, bottom = width // 4, height // 3, width - 7, height - 5
        pixels = np.zeros((height, width, 3), np.uint8)
        pixels[top:bottom, left:right] = 255
        cv2.imwrite(str(tmp_path / f"{index}.png"), pixels)
        images.append({"id": index, "file_name": f"{index}.png", "height": height, "width": width})
        box = [left, top, right - left, bottom - top]
        annotations.append({"id": index, "image_id": index, "category_id": 1, "bbox": box})
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "thing"}]}
    (tmp_path / "_annotations.coco.json").write_text(json.dumps(content))
    return read_coco(tmp_path / "_annotations.coco.json")


class FindsWhite(nn.Module):
    """A perfect detector: one query, the bounds of what is white in the input."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, images: Tensor) -> DetectorOutput:
        height, width = images.shape[-2:]
        boxes = []
        for mask in images[:, 0] > 0.5:
            rows, columns = mask.any(dim=1).nonzero()[:, 0], mask.any(dim=0).nonzero()[:, 0]
            low = torch.stack([columns[0] / width, rows[0] / height])
            high = torch.stack([(columns[-1] + 1) / width, (rows[-1] + 1) / height])
            boxes.append(torch.cat([(low + high) / 2, high - low]))
        return DetectorOutput(torch.full((len(images), 1, 1), 5.0), torch.stack(boxes)[:, None])


@pytest.mark.parametrize("mode", ["stretch", "letterbox"])
@pytest.mark.parametrize("size_hw", [(192, 192), (160, 256)])
def test_boxes_are_mapped_back_to_the_original_images(split: Split, size_hw: tuple[int, int], mode: ResizeMode) -> None:
    loader = build_loader(DetectionDataset(split, size_hw, resize=mode), 3, 0, shuffle=False)
    evaluator = CocoEvaluator(split.records, split.classes)
    metrics = validate(FindsWhite(), loader, evaluator, image_size=size_hw, resize=mode)
    assert metrics.ap75 == 1
    assert metrics.ap > 0.9
    if mode == "letterbox":
        wrong = validate(FindsWhite(), loader, evaluator, image_size=size_hw, resize="stretch")
        assert wrong.ap75 < 0.9


def test_predictions_in_images_of_any_size(split: Split) -> None:
    """The first file is a copy at half the annotated size, the last one is damaged and left out."""
    first = split.image_dir / "0.png"
    cv2.imwrite(str(first), cv2.imread(str(first))[::2, ::2])
    (split.image_dir / "3.png").write_bytes(b"damaged")
    sizes: list[tuple[int, ...]] = []

    def find_white(image: np.ndarray) -> Detections:
        sizes.append(image.shape[:2])
        rows, columns = np.nonzero(image[..., 0] > 128)
        if not len(rows):
            return Detections(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64), ("thing",))
        box = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        return Detections(np.array([box], np.float32), np.ones(1, np.float32), np.zeros(1, np.int64), ("thing",))

    evaluator = CocoEvaluator(split.records, split.classes)
    metrics = validate_predictions(find_white, DetectionDataset(split, (32, 32)), evaluator)
    assert sizes[:3] == [(24, 32), (64, 48), (30, 97)], "at full size, whatever the size of the network"
    assert metrics.num_images == 3
    assert metrics.ap75 == 1
    assert metrics.ar100 > 0.9


class FindsWhiteInFewImages(FindsWhite):
    """Has memory for `most` images at once."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most = most

    def forward(self, images: Tensor) -> DetectorOutput:
        if len(images) > self.most:
            raise torch.OutOfMemoryError
        return super().forward(images)


def test_a_batch_that_does_not_fit_is_evaluated_in_parts(split: Split) -> None:
    loader = build_loader(DetectionDataset(split, (192, 192)), 4, 0, shuffle=False)
    evaluator = CocoEvaluator(split.records, split.classes)
    whole = validate(FindsWhite(), loader, evaluator, image_size=(192, 192))
    assert validate(FindsWhiteInFewImages(1), loader, evaluator, image_size=(192, 192)) == whole
    with pytest.raises(torch.OutOfMemoryError):
        validate(FindsWhiteInFewImages(0), loader, evaluator, image_size=(192, 192))
