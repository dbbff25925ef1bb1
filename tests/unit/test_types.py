from __future__ import annotations

import pytest
import torch

from rtdetrv4.types import Targets


def test_targets_of_images_and_back() -> None:
    images = [
        (torch.tensor([3, 1], dtype=torch.int32), torch.rand(2, 4, dtype=torch.float64)),
        (torch.zeros(0), torch.zeros(0, 4)),
        (torch.tensor([2]), torch.rand(1, 4)),
    ]
    targets = Targets.of(images)
    assert targets.counts == (2, 0, 1)
    assert targets.labels.dtype == torch.int64
    assert targets.boxes.dtype == torch.float32
    assert targets.labels.tolist() == [3, 1, 2]
    assert torch.equal(targets.boxes, torch.cat([boxes.float() for _, boxes in images]))
    for (labels, boxes), (given_labels, given_boxes) in zip(targets.split(), images, strict=True):
        assert labels.tolist() == given_labels.tolist()
        assert torch.equal(boxes, given_boxes.float())


def test_every_box_needs_a_label() -> None:
    with pytest.raises(ValueError, match=r"got \(2, 1\) labels and \(1, 1\) boxes per image"):
        Targets.of([(torch.tensor([0, 1]), torch.rand(1, 4)), (torch.tensor([0]), torch.rand(1, 4))])
