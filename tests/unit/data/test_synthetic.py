from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from rtdetrv4.data.formats import Splits, read_splits
from rtdetrv4.data.synthetic import CLASSES, write_shapes


@pytest.fixture(scope="module")
def splits(tmp_path_factory: pytest.TempPathFactory) -> Splits:
    return read_splits(write_shapes(tmp_path_factory.mktemp("shapes"), num_train=60, num_val=10, image_size=128))


def test_makes_a_clean_data_set(splits: Splits) -> None:
    assert splits.train is not None
    assert splits.val is not None
    assert len(splits.train.records) == 60
    assert len(splits.val.records) == 10
    assert splits.train.problems == ()
    assert splits.train.classes.names == CLASSES
    labels = np.concatenate([record.labels for record in splits.train.records])
    assert np.bincount(labels, minlength=len(CLASSES)).min() > 10
    counts = [len(record.labels) for record in splits.train.records]
    assert min(counts) == 0
    assert max(counts) > 3
    sides = np.concatenate([r.boxes_xyxy_px[:, 2:] - r.boxes_xyxy_px[:, :2] for r in splits.train.records])
    assert sides.min() > 4
    assert 10 < np.median(sides) < 40


def test_splits_share_no_picture(splits: Splits) -> None:
    assert splits.train is not None
    assert splits.val is not None
    pixels = [
        cv2.imread(str(split.image_dir / record.info.file_name)).tobytes()
        for split in (splits.train, splits.val)
        for record in split.records
    ]
    assert len(set(pixels)) == 70


def test_the_seed_decides(tmp_path: Path) -> None:
    def contents(name: str, seed: int) -> list[bytes]:
        folder = write_shapes(tmp_path / name, num_train=3, num_val=1, image_size=96, seed=seed)
        return [path.read_bytes() for path in sorted(folder.rglob("*.*"))]

    first = contents("a", 0)
    assert len(first) == 6
    assert contents("b", 0) == first
    assert contents("c", 1) != first


def test_shapes_stand_out_where_their_boxes_are(splits: Splits) -> None:
    """Inside of its box a shape differs from the ring just around it."""
    assert splits.train is not None
    differences = []
    for record in splits.train.records:
        image = cv2.imread(str(splits.train.image_dir / record.info.file_name)).astype(np.float32)
        for left, top, right, bottom in record.boxes_xyxy_px.astype(int):
            if min(left, top) < 3 or max(right, bottom) > 125:
                continue
            around = image[top - 3 : bottom + 3, left - 3 : right + 3].copy()
            around[3:-3, 3:-3] = np.nan
            center = image[(top + bottom) // 2, (left + right) // 2]
            differences.append(np.abs(center - np.nanmean(around, axis=(0, 1))).max())
    assert np.median(differences) > 40
