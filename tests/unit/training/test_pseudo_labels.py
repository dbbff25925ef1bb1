from __future__ import annotations

import math
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from rtdetrv4.data.records import Record, Split
from rtdetrv4.data.transforms import Augmentation
from rtdetrv4.evaluation.coco_evaluator import ImageDetections
from rtdetrv4.runtime.selection import Selection
from rtdetrv4.training import PseudoLabels
from rtdetrv4.training.pseudo_labels import choose_labels, class_thresholds, draw_images, usual_epochs
from rtdetrv4.types import ImageInfo
from small_training import CLASSES, SIZE, FindsColors, assert_same, make_plan, make_pseudo_labels, write_images

STRONG = Augmentation(zoom_out=0.5, iou_crop=0.8, flip=0.5)


def box(left: float) -> list[float]:
    return [left, 0, left + 10, 10]


def test_thresholds_by_hand() -> None:
    """Four classes: with an optimum, without boxes, never found, and best at any confidence up to a low one."""
    boxes = np.array([box(0), box(20), box(40), box(60)], np.float32)
    truth = Record(
        ImageInfo(0, "a", 100, 100), boxes, np.array([0, 0, 2, 3]), np.zeros(4, dtype=bool), np.full(4, 100.0)
    )
    found = ImageDetections(
        np.array([box(0), box(20), box(80), box(80), box(80), box(60)], np.float32),
        np.array([0.9, 0.6, 0.4, 0.95, 0.8, 0.1], np.float32),
        np.array([0, 0, 0, 1, 2, 3]),
    )
    # Class 0: both right and none wrong from 0.401 to 0.6, in the middle of which is 0.501. Class 3: up to 0.1.
    assert class_thresholds([truth], [found], 4, floor=0.0).tolist() == [0.501, 0.5, math.inf, 0.05]
    assert class_thresholds([truth], [found], 4, floor=0.3).tolist() == [0.501, 0.5, math.inf, 0.3]
    assert class_thresholds([truth], [found], 4, floor=0.6).tolist() == [0.6, 0.6, math.inf, 0.6]
    # The best F1 are 1, 0 and 1; the class without boxes has none.
    assert class_thresholds([truth], [found], 4, floor=0.0, least_f1=0.66).tolist() == [0.501, 0.5, math.inf, 0.05]
    assert class_thresholds([truth], [found], 4, floor=0.0, least_f1=0.67).tolist() == [math.inf] * 4


def test_labels_are_one_box_per_object_inside_the_image() -> None:
    found = ImageDetections(
        np.array(
            [
                [-5, 10, 20, 30],
                [-5, 10, 20, 30],  # the same query, with another class
                [-4.9, 10, 20, 30],  # another query on the same object
                [30, 10, 60, 20],  # not confident enough for its class
                [49.5, 10, 80, 30],  # half a pixel is inside
                [20, 5, 30, 15],
                [21, 5, 31, 15],  # at an IoU of 0.82 the same object
                [24, 5, 34, 15],
            ],
            np.float32,
        ),
        np.array([0.9, 0.8, 0.7, 0.6, 0.6, 0.5, 0.5, 0.4], np.float32),
        np.array([0, 1, 0, 1, 0, 2, 2, 2]),
    )
    selection = Selection(("a", "b", "c"), conf={"a": 0.5, "b": 0.65, "c": 0.4})
    boxes, labels = choose_labels(found, ImageInfo(0, "a", 40, 50), selection)
    assert boxes.tolist() == [[0, 10, 20, 30], [20, 5, 30, 15], [24, 5, 34, 15]]
    assert labels.tolist() == [0, 2, 2]


def test_draws_are_one_pass_after_the_other() -> None:
    whole = draw_images(5, 0, 15, seed=3)
    for start in (0, 5, 10):
        assert sorted(whole[start : start + 5].tolist()) == [0, 1, 2, 3, 4]
    assert len({tuple(whole[start : start + 5].tolist()) for start in (0, 5, 10)}) > 1
    assert draw_images(5, 3, 9, seed=3).tolist() == whole[3:12].tolist()
    assert draw_images(5, 5, 5, seed=3).tolist() == whole[5:10].tolist()
    assert draw_images(5, 0, 15, seed=4).tolist() != whole.tolist()


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, range(10, 18)),  # until the lowest learning rate
        ({"refine_from": 16}, range(10, 16)),
        ({"flat_epoch": 9.2}, range(10, 18)),
        ({"flat_epoch": 30}, range(10, 18)),  # it never falls
        ({"flat_epoch": 15, "lr_gamma": 1.0}, range(10, 18)),
        ({"no_aug_epochs": 0.5}, range(10, 19)),
    ],
)
def test_they_begin_when_the_labels_are_learned_and_end_before_the_run(changes: dict, expected: range) -> None:
    plan = make_plan(epochs=20, **{"flat_epoch": 10, "no_aug_epochs": 2, "refine_from": 20, **changes})
    assert usual_epochs(plan) == expected


def test_a_run_of_one_epoch_has_none() -> None:
    assert not usual_epochs(make_plan(epochs=1, flat_epoch=0, no_aug_epochs=1, refine_from=1))


@pytest.fixture
def split(tmp_path: Path) -> Split:
    """Twelve images with one to three rectangles, but for three without any."""
    return write_images(tmp_path, 12, empty=(1, 4, 9))


def test_images_in_which_nothing_is_found_are_left_out(split: Split) -> None:
    pseudo = make_pseudo_labels(split, range(2, 4), steps_per_epoch=3)
    assert not list(pseudo.batches(0))
    pseudo.label(FindsColors(), 2)
    assert list(pseudo.labels) == [0, 2, 3, 5, 6, 7, 8, 10, 11]
    # Nine of twelve draws are two whole batches, in the last two of three steps.
    assert [pseudo.takes(step) for step in range(3)] == [False, True, True]
    batches = list(pseudo.batches(0))
    assert [len(batch.images) for batch in batches] == [4, 4]
    assert all(count for batch in batches for count in batch.targets.counts)
    report = pseudo.report()
    assert report is not None
    assert report[:4] == (12, 9, sum(len(each.labels) for each in pseudo.labels.values()), 2)
    assert report.thresholds == {"red": 0.5, "green": 0.5, "blue": 0.5}
    pseudo.forget()
    assert pseudo.report() is None
    assert not any(pseudo.takes(step) for step in range(3))


def test_nothing_is_confident_enough(split: Split) -> None:
    pseudo = make_pseudo_labels(split, range(2), steps_per_epoch=3, threshold=0.99, kind=PseudoLabels)
    pseudo.label(FindsColors(4.0), 0)  # a confidence of 0.982
    assert not pseudo.labels
    assert not list(pseudo.batches(0))
    pseudo.label(FindsColors(5.0), 0)  # 0.993
    assert len(pseudo.labels) == 9


def test_images_that_cannot_be_read_get_no_labels(split: Split) -> None:
    (split.image_dir / "3.png").write_bytes(b"no picture")
    pseudo = make_pseudo_labels(split, range(2), steps_per_epoch=3)
    pseudo.label(FindsColors(), 0)
    assert list(pseudo.labels) == [0, 2, 5, 6, 7, 8, 10, 11]
    assert pseudo.num_unreadable == 1
    assert "3.png" not in {info.file_name for batch in pseudo.batches(0) for info in batch.infos}


def test_a_class_with_an_infinite_threshold_gives_no_labels(split: Split) -> None:
    pseudo = make_pseudo_labels(split, range(2), steps_per_epoch=3)
    pseudo.thresholds = np.array([0.5, math.inf, 0.5])
    pseudo.label(FindsColors(), 0)
    assert set(np.concatenate([each.labels for each in pseudo.labels.values()])) == {0, 2}


def test_weights_that_find_little_label_nothing(split: Split) -> None:
    pseudo = make_pseudo_labels(split, range(2), steps_per_epoch=3)
    pseudo.thresholds = np.full(3, math.inf)
    assert pseudo.is_waiting
    pseudo.label(FindsColors(), 0)
    assert pseudo.num_steps == 0
    assert pseudo.report() is None
    pseudo.thresholds = np.full(3, 0.5)
    pseudo.label(FindsColors(), 1)
    assert pseudo.num_steps == 2


def test_a_few_images_are_drawn_again_and_changed_anew(tmp_path: Path) -> None:
    pseudo = make_pseudo_labels(write_images(tmp_path, 3), range(1), steps_per_epoch=3, augment=STRONG)
    pseudo.label(FindsColors(), 0)
    assert pseudo.num_images == 3
    batches = list(pseudo.batches(0))
    assert [len(batch.images) for batch in batches] == [4, 4, 4]
    images = torch.cat([batch.images for batch in batches])
    ids = [info.image_id for batch in batches for info in batch.infos]
    assert sorted(ids) == [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2]
    same = [images[index] for index, image in enumerate(ids) if image == 0]
    assert not all(torch.equal(same[0], other) for other in same[1:])


@pytest.mark.parametrize("workers", [0, 1])
def test_boxes_follow_their_pixels_through_zoom_crop_and_flip(tmp_path: Path, workers: int) -> None:
    """In an image of another size than the samples, what is bright lies in its box, and fills it."""
    left, top, right, bottom = 30, 12, 78, 66
    pixels = np.zeros((80, 112, 3), np.uint8)
    pixels[top:bottom, left:right, 2] = 255  # red
    cv2.imwrite(str(tmp_path / "0.png"), pixels)
    nothing = np.zeros(0)
    record = Record(
        ImageInfo(0, "0.png", 80, 112), nothing.reshape(0, 4).astype(np.float32), nothing.astype(np.int64),
        nothing.astype(bool), nothing,
    )  # fmt: skip
    split = Split(tmp_path, (record,), CLASSES, "made up", ())
    pseudo = make_pseudo_labels(split, range(1), steps_per_epoch=10, augment=STRONG, workers=workers)
    pseudo.label(FindsColors(), 0)
    boxes, labels = pseudo.labels[0]
    assert labels.tolist() == [0]
    np.testing.assert_allclose(boxes, [[left, top, right, bottom]], atol=1.8)  # a pixel of a sample
    shown, shapes = 0, set()
    for batch in pseudo.batches(0):
        for image, (own_labels, own_boxes) in zip(batch.images, batch.targets.split(), strict=True):
            assert own_labels.tolist() == [0]
            rows, columns = (image[0] > 128).nonzero(as_tuple=True)
            bounds = torch.stack([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]) / SIZE[0]
            center, half = own_boxes[0, :2], own_boxes[0, 2:] / 2
            torch.testing.assert_close(torch.cat([center - half, center + half]), bounds, rtol=0, atol=4 / SIZE[0])
            shapes.add(tuple(bounds.tolist()))
            shown += 1
    assert shown == 40
    assert len(shapes) > 20


def test_the_middle_of_an_epoch_and_a_saved_state(split: Split) -> None:
    pseudo = make_pseudo_labels(split, range(5), steps_per_epoch=4, per_step=2, batch=2)
    pseudo.label(FindsColors(), 3)
    whole = list(pseudo.batches(0))
    taken = [step for step in range(4) if pseudo.takes(step)]
    assert len(whole) == 2 * len(taken) == 2 * pseudo.num_steps
    assert 0 < len(taken) < 4
    again = make_pseudo_labels(split, range(5), steps_per_epoch=4, per_step=2, batch=2)
    again.load_state_dict(pseudo.state_dict())
    assert_same(again.state_dict(), pseudo.state_dict())
    for step in range(5):
        rest = whole[2 * sum(each < step for each in taken) :]
        for one in (pseudo, again):
            found = list(one.batches(step))
            assert_same([batch[:2] for batch in found], [batch[:2] for batch in rest])


def test_ranks_share_the_work_and_take_part_in_the_same_steps(split: Split) -> None:
    alone = make_pseudo_labels(split, range(1), steps_per_epoch=3)
    alone.label(FindsColors(), 0)
    state = alone.state_dict()
    batches = []
    for rank in range(2):
        part = make_pseudo_labels(split, range(1), steps_per_epoch=3, batch=2)
        part.rank, part.ranks = rank, 2
        part.load_state_dict(state)
        assert [part.takes(step) for step in range(3)] == [alone.takes(step) for step in range(3)]
        batches.append(list(part.batches(0)))
    for whole, *parts in zip(alone.batches(0), *batches, strict=True):
        ids = [{info.image_id for info in batch.infos} for batch in (whole, *parts)]
        assert ids[0] == ids[1] | ids[2]
        assert [len(each) for each in ids] == [4, 2, 2]
