from __future__ import annotations

import pytest

from rtdetrv4.data.dataset import DetectionDataset
from rtdetrv4.data.loader import build_loader
from rtdetrv4.data.transforms import Augmentation
from rtdetrv4.training import TrainingData
from rtdetrv4.training.plan import AUGMENTED, BASIC, DENSE, REFINEMENT
from small_training import SIZE, write_images

AUGMENT = Augmentation(mosaic=0.5, mixup=0.4, photometric=0.3, zoom_out=0.2, iou_crop=0.8, flip=0.6, rotation=7)


@pytest.fixture
def data(tmp_path):
    dataset = DetectionDataset(write_images(tmp_path, 6), SIZE, AUGMENT)
    loader = build_loader(dataset, 2, 0, shuffle=True, drop_last=True)
    return TrainingData(loader=loader, augment=AUGMENT, image_size=SIZE, multi_scale_repeat=1)


def test_a_stage_allows_what_it_names(data):
    nothing = Augmentation(flip=0.6, rotation=7)
    assert data.allowed(DENSE) == AUGMENT
    assert data.allowed(AUGMENTED) == AUGMENT._replace(mosaic=0, mixup=0)
    assert data.allowed(BASIC) == data.allowed(REFINEMENT) == nothing


def test_an_epoch_can_be_entered_in_the_middle(data):
    whole = [batch.infos for batch in data.batches(1, DENSE, 0)]
    assert len(whole) == 3
    assert [batch.infos for batch in data.batches(1, DENSE, 2)] == whole[2:]
    assert [batch.infos for batch in data.batches(1, DENSE, 3)] == []
    assert [batch.infos for batch in data.batches(2, DENSE, 0)] != whole


def test_only_refinement_has_one_scale(data):
    assert {data.size(0, step, DENSE) for step in range(30)} > {SIZE}
    assert {data.size(0, step, REFINEMENT) for step in range(30)} == {SIZE}


def test_mixup_belongs_to_the_dense_stage(data):
    assert {data.mixup(0, number, DENSE) is None for number in range(30)} == {True, False}
    assert {data.mixup(0, number, AUGMENTED) for number in range(30)} == {None}


def test_unreadable_images_are_counted(tmp_path, caplog):
    split = write_images(tmp_path, 12)
    (tmp_path / "3.png").write_bytes(b"no picture")
    loader = build_loader(DetectionDataset(split, SIZE, AUGMENT), 2, 0, shuffle=False, drop_last=True)
    data = TrainingData(loader=loader, augment=AUGMENT, image_size=SIZE)
    assert data.num_unreadable == 0
    for _ in data.batches(0, BASIC, 0):
        pass
    assert data.num_unreadable == 1
    assert "3.png" in caplog.text
