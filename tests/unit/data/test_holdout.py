"""The validation part that is made, and copies in one that is given."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rtdetrv4.data import holdout
from rtdetrv4.data.formats import RecordTable, Split, Splits, read_splits
from rtdetrv4.data.holdout import find_copies, hold_out

LINE = "{label} 0.5 0.5 0.4 0.4"


def write_image(path: Path, seed: int, size: tuple[int, int] = (96, 64)) -> None:
    """Blocks of random gray, unlike those of another seed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    blocks = np.random.default_rng(seed).integers(0, 256, (8, 12), np.uint8)
    Image.fromarray(blocks).resize(size, Image.Resampling.BICUBIC).convert("RGB").save(path, quality=95)


def write(root: Path, labels: Sequence[Sequence[int]], *, first: int = 0) -> Path:
    """A flat YOLO folder; each image has boxes of these classes."""
    for index, numbers in enumerate(labels, start=first):
        write_image(root / f"{index}.jpg", index)
        (root / f"{index}.txt").write_text("\n".join(LINE.format(label=number) for number in numbers))
    (root / "classes.txt").write_text("a\nb\nc\n")
    return root


def files(split: Split | None) -> list[str]:
    assert split is not None
    return [record.info.file_name for record in split.records]


def made(root: Path) -> Splits:
    return read_splits(root, make_val=True)


def test_a_fifth_is_taken_with_every_class_on_both_sides(tmp_path: Path) -> None:
    labels = [[0]] * 30 + [[0, 1]] * 12 + [[2]] * 5 + [[]] * 13
    splits = made(write(tmp_path, labels))
    train, val = files(splits.train), files(splits.val)
    assert (len(train), len(val)) == (48, 12)
    assert set(train) | set(val) == {f"{index}.jpg" for index in range(60)}
    assert splits.is_val_made
    assert splits.notes[-1] == (
        "There are no validation images, so 12 images are taken for it, and 48 of 60 are left for training"
    )
    counts = Counter(label for name in val for label in set(labels[int(Path(name).stem)]) or {-1})
    assert 7 <= counts[0] <= 10  # of 42
    assert 2 <= counts[1] <= 3  # of 12
    assert counts[2] == 1  # of 5
    assert counts[-1] <= 4  # of 13 without a box
    assert splits.val is not None
    assert splits.train is not None
    assert splits.val.fingerprint != splits.train.fingerprint
    assert splits.val.records[0].boxes_xyxy_px.shape[1] == 4


def test_the_same_every_time(tmp_path: Path) -> None:
    root = write(tmp_path / "one", [[0], [1], [0, 1], [], [2]] * 5)
    split = read_splits(root, parts=("train",)).train
    assert split is not None
    assert isinstance(split.records, RecordTable)
    backwards = split._replace(records=split.records.subset(range(24, -1, -1)))
    assert sorted(files(hold_out(split)[1])) == sorted(files(hold_out(backwards)[1]))
    shutil.copytree(root, tmp_path / "two")
    assert files(made(tmp_path / "two").val) == files(made(root).val)


def test_copies_stay_on_one_side(tmp_path: Path) -> None:
    root = write(tmp_path, [[0], [1]] * 6)
    for index in range(12):
        with Image.open(root / f"{index}.jpg") as image:
            image.resize((192, 128)).save(root / f"large{index}.jpg", quality=80)
        shutil.copy(root / f"{index}.jpg", root / f"copy{index}.jpg")
        for name in ("large", "copy"):
            shutil.copy(root / f"{index}.txt", root / f"{name}{index}.txt")
    splits = made(root)

    def shown(split: Split | None) -> set[str]:
        return {"".join(filter(str.isdigit, name)) for name in files(split)}

    assert not shown(splits.train) & shown(splits.val)
    assert 3 <= len(files(splits.val)) <= 8


def test_what_looks_alike_by_way_of_another_is_one_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the order, and however few images are compared at once."""
    side = np.zeros((4, 256), np.float32)
    angles = [0, 1.2, 0.6, 1.8]  # radians; up to 0.7 apart they are alike: 0 and 2, 2 and 1, 1 and 3
    side[:, 0], side[:, 1] = np.cos(angles), np.sin(angles)
    alone = np.zeros(256, np.float32)
    alone[5] = 1
    thumbnails = {Path(str(index)): row for index, row in enumerate([*side, alone])}
    monkeypatch.setattr(holdout, "_thumbnail", thumbnails.get)
    monkeypatch.setattr(holdout, "MIN_CORRELATION", np.cos(0.7))
    for block in (1, 2, 100):
        monkeypatch.setattr(holdout, "_BLOCK", block)
        assert holdout._same_look(list(thumbnails)) == [[0, 1, 2, 3]]


@pytest.mark.parametrize(("count", "num_val"), [(2, 1), (3, 1), (4, 1), (7, 1), (8, 2)])
def test_few_images(tmp_path: Path, count: int, num_val: int) -> None:
    splits = made(write(tmp_path, [[0]] * count))
    assert (len(files(splits.train)), len(files(splits.val))) == (count - num_val, num_val)
    assert splits.val is not None
    assert all(len(record.labels) for record in splits.val.records)


def test_one_image_is_for_both(tmp_path: Path) -> None:
    splits = made(write(tmp_path, [[0]]))
    assert files(splits.train) == files(splits.val) == ["0.jpg"]
    assert splits.notes[-1].endswith("validation is on the training image")


def test_images_that_are_all_alike_are_divided_with_a_warning(tmp_path: Path) -> None:
    write(tmp_path, [[0]] * 5)
    for index in range(1, 5):
        shutil.copy(tmp_path / "0.jpg", tmp_path / f"{index}.jpg")
    splits = made(tmp_path)
    assert (len(files(splits.train)), len(files(splits.val))) == (4, 1)
    assert splits.notes[-1].endswith("all images look alike, so the metrics will be too good")


def test_nothing_is_taken_unless_asked_or_needed(tmp_path: Path) -> None:
    write(tmp_path / "train", [[0]] * 5)
    assert read_splits(tmp_path).val is None
    write(tmp_path / "val", [[0]], first=9)
    splits = made(tmp_path)
    assert not splits.is_val_made
    assert files(splits.val) == ["val/9.jpg"]


def test_copies_of_training_images_are_told(tmp_path: Path) -> None:
    write(tmp_path / "train", [[0]] * 3)
    write(tmp_path / "val", [[0]] * 2, first=5)
    splits = read_splits(tmp_path)
    assert splits.train is not None
    assert splits.val is not None
    assert find_copies(splits.train, splits.val) == []
    shutil.copy(tmp_path / "train" / "1.jpg", tmp_path / "val" / "5.jpg")
    assert read_splits(tmp_path).notes[-1] == (
        "1 validation image is a copy of training images (first: val/5.jpg of train/1.jpg), so the metrics will be too "
        "good"
    )
