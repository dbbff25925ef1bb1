"""Tiny data sets of drawn shapes in the very layouts of COCO and RF100-VL, for dry runs."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

from coco import Part

from rtdetrv4.data.formats import ROBOFLOW_FILE
from rtdetrv4.data.synthetic import write_shapes

SIDE, NUM_CLASSES = 96, 3
COCO_PARTS = {"train": Part(16), "val": Part(8)}
RF100VL_SETS = {"Shapes": ("discs", "squares"), "More shapes": ("triangles",)}
NUM_EACH = 6
"""Images in a part of a data set."""


def write_tiny_coco(folder: Path) -> Path:
    """Write train2017/, val2017/ and annotations/ unless they are there."""
    train, val = (COCO_PARTS[part].images for part in ("train", "val"))
    _write(folder, lambda at: _as_coco(write_shapes(at, train, val, SIDE, NUM_CLASSES)))
    return folder


def write_tiny_rf100vl(folder: Path) -> Path:
    """Write DOMAIN/SET/{train,valid,test} unless they are there."""
    for domain, names in RF100VL_SETS.items():
        for seed, name in enumerate(names):
            _write(folder / domain / name, partial(_with_test, seed=seed))
    return folder


def _write(folder: Path, write: Callable[[Path], object]) -> None:
    """Write a folder whole: one that is there is complete."""
    if folder.exists():
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as place:
        unfinished = Path(place) / folder.name
        write(unfinished)
        try:
            unfinished.rename(folder)
        except OSError:  # another process has been faster, and has drawn the same
            if not folder.is_dir():
                raise


def _as_coco(roboflow: Path) -> None:
    annotations = roboflow / "annotations"
    annotations.mkdir()
    for part, name in {"train": "train2017", "valid": "val2017"}.items():
        (roboflow / part).rename(roboflow / name)
        (roboflow / name / ROBOFLOW_FILE).rename(annotations / f"instances_{name}.json")


def _with_test(folder: Path, seed: int) -> None:
    write_shapes(folder, NUM_EACH, NUM_EACH, SIDE, NUM_CLASSES, seed=2 * seed)
    others = write_shapes(folder / "others", 1, NUM_EACH, SIDE, NUM_CLASSES, seed=2 * seed + 1)
    (others / "valid").rename(folder / "test")
    shutil.rmtree(others)
