"""Which images and boxes a probe looks at."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from made_up_set import Shown, split_of
from rtdetrv4.data.records import Split
from rtdetrv4.errors import DatasetError
from rtdetrv4.probing.sample import BACKGROUND, FOLDS, MAX_COVERED, BoxSample, draw_sample

CAT = (0, 40.0, 60.0, 200.0, 260.0)
DOG = (1, 300.0, 320.0, 420.0, 400.0)


def cats_and_dogs(num_cats: int = 30, num_dogs: int = 6) -> Split:
    """A cat in every image; a dog beside it in the last ones."""
    return split_of(
        [Shown(f"{index}.jpg", (CAT, DOG) if index >= num_cats - num_dogs else (CAT,)) for index in range(num_cats)]
    )


def names_of(sample: BoxSample) -> list[str]:
    return [record.info.file_name for record in sample.split.records]


def covered(box: np.ndarray, objects: np.ndarray) -> float:
    """The largest share of a box that one object covers."""
    sides = np.minimum(box[2:], objects[:, 2:]) - np.maximum(box[:2], objects[:, :2])
    return float(sides.clip(min=0).prod(axis=1).max() / (box[2:] - box[:2]).prod())


def test_few_images_show_every_class() -> None:
    sample = draw_sample(cats_and_dogs(), 12)
    assert len(names_of(sample)) == 12
    assert sum(int(name.partition(".")[0]) >= 24 for name in names_of(sample)) >= 6
    assert sample.names == ("cat", "dog", BACKGROUND)
    assert sample.notes == ()
    counts = np.bincount(sample.labels).tolist()
    assert counts == [12, 6, 18]


def test_the_seed_decides() -> None:
    one, same, other = (draw_sample(cats_and_dogs(), 12, seed) for seed in (0, 0, 1))
    assert names_of(one) == names_of(same) != names_of(other)
    np.testing.assert_array_equal(one.boxes, same.boxes)
    np.testing.assert_array_equal(one.folds, same.folds)


def test_background_has_the_sizes_of_objects_and_avoids_all_of_them() -> None:
    crowd = (0, 430.0, 0.0, 640.0, 640.0)
    images = [Shown(f"{index}.jpg", (CAT, DOG, crowd), size_hw=(480, 640)) for index in range(6)]
    split = split_of(images)
    records = tuple(record._replace(is_crowd=np.array([False, False, True])) for record in split.records)
    sample = draw_sample(split._replace(records=records), 6)
    is_background = sample.labels == 2
    objects, background = sample.boxes[~is_background], sample.boxes[is_background]
    assert len(objects) == len(background) == 12
    sizes = [np.sort((boxes[:, 2:] - boxes[:, :2]).prod(axis=1)) for boxes in (objects, background)]
    np.testing.assert_allclose(sizes[0], sizes[1])
    np.testing.assert_allclose(objects[0], np.array(CAT[1:]) / (640, 480, 640, 480))
    everything = np.array([CAT[1:], DOG[1:], crowd[1:]]) / (640, 480, 640, 480)
    assert max(covered(box, everything) for box in background) < MAX_COVERED
    assert background.min() >= 0
    assert background.max() <= 1


def test_small_background_is_not_put_into_a_large_object() -> None:
    """Its IoU with the object would be small."""
    large, small = (0, 0.0, 0.0, 560.0, 640.0), (1, 600.0, 10.0, 630.0, 40.0)
    sample = draw_sample(split_of([Shown(f"{index}.jpg", (large, small)) for index in range(8)]), 8)
    background = sample.boxes[sample.labels == 2]
    assert len(background) == 8  # of the small ones: there is no room for the large
    assert background[:, 0].min() * 640 > 555
    assert sample.notes == ("8 of 16 boxes have no background of their size.",)


def test_a_box_that_has_no_room_in_its_image_finds_some_in_another() -> None:
    large, small = (0, 0.0, 0.0, 400.0, 640.0), (1, 600.0, 10.0, 630.0, 40.0)
    images = [Shown(f"{index}.jpg", (large,) if index < 8 else (small,)) for index in range(16)]
    sample = draw_sample(split_of(images), 16)
    is_background = sample.labels == 2
    assert is_background.sum() == 16
    names = np.array(names_of(sample))[sample.images[is_background]]
    sizes = sample.boxes[is_background]
    assert {int(name[:-4]) for name in names[sizes[:, 2] - sizes[:, 0] > 0.5]} <= set(range(8, 16))


def test_no_image_and_no_copy_crosses_folds(tmp_path: Path) -> None:
    images = [Shown(f"{index}.png", (CAT, DOG) if index % 2 else (CAT,)) for index in range(20)]
    for index in range(20):
        seen = index // 2  # every other image is a copy of the one before
        blocks = np.random.default_rng(seen).integers(0, 256, (8, 12), np.uint8)
        Image.fromarray(blocks).resize((640, 640)).convert("RGB").save(tmp_path / f"{index}.png")
    sample = draw_sample(split_of(images, tmp_path), 20)
    folds_of: dict[int, set[int]] = {}
    for image, fold in zip(sample.images, sample.folds, strict=True):
        folds_of.setdefault(int(names_of(sample)[image][:-4]) // 2, set()).add(int(fold))
    assert len(folds_of) == 10
    assert {len(folds) for folds in folds_of.values()} == {1}
    assert {fold for folds in folds_of.values() for fold in folds} == set(range(FOLDS))


def test_every_fold_has_its_share_of_every_category() -> None:
    sample = draw_sample(cats_and_dogs(num_cats=50, num_dogs=10), 50)
    shares = np.zeros((FOLDS, 3), dtype=int)
    np.add.at(shares, (sample.folds, sample.labels), 1)
    assert shares[:, 1].tolist() == [2] * FOLDS
    assert np.ptp(shares[:, 0]) <= 1
    assert np.ptp(shares[:, 2]) <= 2


def test_a_class_of_too_few_images_is_left_out_by_name() -> None:
    sample = draw_sample(cats_and_dogs(num_dogs=4), 300)
    assert sample.names == ("cat", BACKGROUND)
    assert sample.notes == ("Left out: dog, shown by fewer than 5 of the images.",)
    assert set(sample.labels.tolist()) == {0, 1}
    with pytest.raises(DatasetError, match="at least 5 different training images that show the same class, and has 4"):
        draw_sample(cats_and_dogs(num_cats=4, num_dogs=2), 300)


def test_objects_that_fill_their_images_leave_nothing_to_tell_them_from() -> None:
    full = (0, 5.0, 5.0, 635.0, 635.0)
    with pytest.raises(DatasetError, match="fit into 0 images, and 5 are needed"):
        draw_sample(split_of([Shown(f"{index}.jpg", (full,)) for index in range(8)]), 8)
