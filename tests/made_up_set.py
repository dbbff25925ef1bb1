"""A data set that the doctor has looked at, made up without files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from rtdetrv4.data.records import RecordTable, Split
from rtdetrv4.data.tree import Tree
from rtdetrv4.doctor.inspection import ImageFacts, Inspection, Part
from rtdetrv4.types import ClassMap


class Shown(NamedTuple):
    """An image: its boxes, and what a look at it told."""

    name: str
    boxes: tuple[tuple[int, float, float, float, float], ...] = ()
    """Label, then corners in pixels."""
    size_hw: tuple[int, int] = (640, 640)
    digest: str = ""
    """The name, if it is empty."""
    dhash: int = 0
    brightness: float = 100.0
    blur: float = 500.0
    is_crowd: bool = False


def split_of(
    images: Sequence[Shown], folder: Path = Path("set/train"), names: tuple[str, ...] = ("cat", "dog")
) -> Split:
    """The images as a split."""
    boxes = np.array([box for image in images for box in image.boxes], dtype=np.float32).reshape(-1, 5)
    table = RecordTable(
        image_ids=np.arange(len(images)),
        file_names=np.array([image.name.encode() for image in images], dtype=np.bytes_),
        sizes_hw=np.array([image.size_hw for image in images], dtype=np.int32).reshape(-1, 2),
        first_box=np.cumsum([0, *(len(image.boxes) for image in images)]),
        boxes_xyxy_px=boxes[:, 1:],
        labels=boxes[:, 0].astype(np.int64),
        is_crowd=np.array([image.is_crowd for image in images for _ in image.boxes], dtype=np.bool_),
        areas=np.prod(boxes[:, 3:] - boxes[:, 1:3], axis=1, dtype=np.float64),
    )
    classes = ClassMap(names, tuple(range(1, len(names) + 1)))
    return Split(folder, table, classes, table.fingerprint(classes), ())


def inspected(
    parts: Mapping[str, Sequence[Shown]],
    names: tuple[str, ...] = ("cat", "dog"),
    root: Path = Path("set"),
    **given: Any,
) -> Inspection:
    """What the checks get for these images."""
    root = root.absolute()
    splits = {name: split_of(images, root / name, names) for name, images in parts.items()}
    facts = {
        root / name / image.name: ImageFacts(
            path=root / name / image.name,
            num_bytes=1000,
            size_hw=image.size_hw,
            mode="RGB",
            format="JPEG",
            num_frames=1,
            orientation=1,
            digest=(image.digest or f"{name}/{image.name}").encode(),
            dhash=image.dhash,
            brightness=image.brightness,
            blur=image.blur,
            problem=None,
        )
        for name, images in parts.items()
        for image in images
    }
    return Inspection(
        data="set",
        root=root,
        tree=Tree(root),
        reading=None,
        stop=None,
        classes=ClassMap(names, tuple(range(1, len(names) + 1))),
        parts={name: Part(name, None, root / name, split, (), None) for name, split in splits.items()},
        facts=facts,
        part_of={},
        **given,
    )
