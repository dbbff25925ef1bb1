from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from rtdetrv4.data.dataset import DetectionDataset
from rtdetrv4.data.loader import build_loader
from rtdetrv4.data.records import Record, Split
from rtdetrv4.data.sampling import draw_weighted, repeat_factors
from rtdetrv4.data.transforms import Augmentation
from rtdetrv4.types import ClassMap, ImageInfo
from small_training import write_images

AUGMENT = Augmentation(iou_crop=1.0, zoom_out=0.5, flip=0.5)
WEIGHTS = np.array([20.0, *[1.0] * 7])


def made_of(labels: list[list[int]], crowds: tuple[int, ...] = ()) -> Split:
    """Images with these labels; the boxes of the images in `crowds` are crowds."""
    records = tuple(
        Record(
            ImageInfo(index, f"{index}.png", 8, 8),
            np.tile(np.float32([0, 0, 4, 4]), (len(own), 1)),
            np.array(own, dtype=np.int64),
            np.full(len(own), index in crowds),
            np.full(len(own), 16.0),
        )
        for index, own in enumerate(labels)
    )
    return Split(Path(), records, ClassMap(("a", "b", "c"), (1, 2, 3)), "made up", ())


def test_factors():
    split = made_of([[0]] * 90 + [[0, 1]] * 9 + [[1, 2, 2]] + [[], [2]], crowds=(101,))
    factors = repeat_factors(split)
    # 99 images have class 0, 10 have class 1, one has class 2; the crowd does not count.
    assert factors[:90] == pytest.approx(1)
    assert factors[90:99] == pytest.approx((99 / 10) ** 0.5)
    assert factors[99] == pytest.approx(99**0.5)
    assert factors[100:] == pytest.approx(1)


def test_no_boxes_at_all():
    assert repeat_factors(made_of([[], []])).tolist() == [1, 1]


def test_classes_come_as_often_as_their_factors_say():
    split = made_of([[0]] * 90 + [[1]] * 9 + [[2]])
    factors = repeat_factors(split)
    expected = factors * 100 / factors.sum()
    drawn = np.zeros(100)
    for epoch in range(200):
        order = draw_weighted(factors, np.random.default_rng(epoch))
        assert len(order) == 100
        times = np.bincount(order % 100, minlength=100)
        assert (abs(times - expected) < 1).all()
        assert len(set(order.tolist())) == 100  # every repetition has a number of its own
        drawn += times / 200
    labels = np.array([record.labels[0] for record in split.records])
    shares = np.bincount(labels, weights=drawn) / 100
    # Class 1 was 10 times and class 2 90 times rarer than class 0.
    assert shares[0] / shares[1] == pytest.approx(10**0.5, rel=0.02)
    assert shares[0] / shares[2] == pytest.approx(90**0.5, rel=0.1)


def test_equal_weights_are_every_image_once():
    order = draw_weighted(np.ones(50), np.random.default_rng(0))
    assert sorted(order.tolist()) == list(range(50))


@pytest.fixture(scope="module")
def split(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("images"), 8)


def batches(split, workers=0, rank=0, world_size=1, epoch=0, start=0):
    dataset = DetectionDataset(split, (32, 32), AUGMENT, seed=1)
    loader = build_loader(
        dataset, 2, workers, True, seed=1, rank=rank, world_size=world_size, drop_last=True, weights=WEIGHTS
    )
    dataset.set_epoch(epoch, AUGMENT)
    loader.sampler.set_epoch(epoch, start)
    return list(loader)


def test_epochs_keep_their_length_and_can_be_resumed(split):
    whole = batches(split, epoch=3)
    assert len(whole) == 4
    for one, other in zip(whole[2:], batches(split, epoch=3, start=2), strict=True):
        assert torch.equal(one.images, other.images)
    assert [batch.infos for batch in batches(split, epoch=4)] != [batch.infos for batch in whole]


def test_repetitions_are_augmented_anew(split):
    pairs = [pair for batch in batches(split) for pair in zip(batch.images, batch.infos, strict=True)]
    images = [image.numpy().tobytes() for image, info in pairs if info.image_id == 0]
    assert len(images) in (5, 6)  # 8 · 20 / 27 = 5.9
    assert len(set(images)) == len(images)


def test_workers_change_nothing(split):
    for one, other in zip(batches(split), batches(split, workers=1), strict=True):
        assert torch.equal(one.images, other.images)


def test_ranks_share_one_order(split):
    def ids(**options):
        return [info.image_id for batch in batches(split, **options) for info in batch.infos]

    ranks = [ids(rank=rank, world_size=2) for rank in (0, 1)]
    assert sorted(ranks[0] + ranks[1]) == sorted(ids())
    assert len(ranks[0]) == len(ranks[1]) == 4
