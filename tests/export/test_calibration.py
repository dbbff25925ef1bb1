"""Calibration images show every class at every size, and are the same every time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from clean_data import write_coco
from made_up_set import Shown, split_of
from rtdetrv4.data.formats import read_splits
from rtdetrv4.errors import DatasetError
from rtdetrv4.export.calibration import CalibrationImages, choose_images

SMALL, MEDIUM, LARGE = 20, 60, 200
"""Sides in pixels of the input."""


def shown(name: str, *boxes: tuple[int, float], side: int = 640) -> Shown:
    """An image with squares of a class and a side each."""
    return Shown(name, tuple((label, 0, 0, length, length) for label, length in boxes), size_hw=(side, side))


def names_of(images: list[Shown], count: int, size: int = 640) -> list[str]:
    return [images[index].name for index in choose_images(split_of(images).records, (size, size), count)]


def test_every_class_is_shown_at_every_size() -> None:
    common = [shown(f"common-{i}", (0, MEDIUM)) for i in range(50)]
    rare = [shown("small", (0, SMALL)), shown("large", (0, LARGE)), shown("other", (1, MEDIUM))]
    chosen = names_of([*common, *rare], 4)
    assert {"small", "large", "other"} < set(chosen)


def test_an_image_with_more_of_what_is_missing_comes_first() -> None:
    images = [shown("one", (0, SMALL)), shown("three", (0, SMALL), (0, LARGE), (1, SMALL)), shown("none")]
    # After "three", one more image of its small class counts a half, and an empty image nothing.
    assert names_of(images, 3) == ["three", "one", "none"]


def test_sizes_are_those_in_the_input() -> None:
    # All squares have 60 pixels of their image; in the input of 320 pixels they have 30, which is small, or 60.
    images = [*(shown(f"half-{i}", (0, MEDIUM)) for i in range(30)), shown("full", (0, MEDIUM), side=320)]
    assert "full" in names_of(images, 2, size=320)


def test_the_choice_does_not_depend_on_the_order() -> None:
    images = [shown(f"image-{i}", (i % 2, (SMALL, MEDIUM, LARGE)[i % 3])) for i in range(30)]
    assert names_of(images, 12) == names_of(images[::-1], 12)
    assert len(set(names_of(images, 99))) == 30


def test_images_are_prepared_as_for_the_model(tmp_path: Path) -> None:
    split = read_splits(write_coco(tmp_path / "set")).train
    assert split is not None
    images = CalibrationImages(split, (32, 64), "letterbox", 3)
    assert len(images) == len(list(images)) == 3
    assert images[0].shape == (1, 3, 32, 64)
    assert images[0].dtype == np.float32
    # An image of 64×96 becomes 32×48 in the middle of 32×64: bars of 8 pixels are black, and it is not.
    assert images[0][..., :8].max() == images[0][..., -8:].max() == 0 < images[0][..., 8:-8].max() <= 1


def test_unreadable_images_are_left_out(tmp_path: Path) -> None:
    folder = write_coco(tmp_path / "set")
    split = read_splits(folder).train
    assert split is not None
    before = CalibrationImages(split, (64, 64), count=4).file_names
    (folder / "train" / before[0]).write_bytes(b"no image")
    assert CalibrationImages(split, (64, 64), count=4).file_names == before[1:]
    for name in before:
        (folder / "train" / name).unlink()
    with pytest.raises(DatasetError, match=r"none of 4 images in .*train can be read"):
        CalibrationImages(split, (64, 64), count=4)
