"""What a data set looks like: a few of its images with their labels, and how often what occurs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from rtdetrv4.data.records import RecordTable, Split
from rtdetrv4.doctor.file_checks import upright_size
from rtdetrv4.doctor.image_facts import ImageFacts
from rtdetrv4.doctor.inspection import Inspection

NUM_SAMPLES = 24
SEED = 0
MAX_SIZES = 10

Box = tuple[float, float, float, float]


class Labeled(NamedTuple):
    """An image with its labels."""

    path: Path
    size_hw: tuple[int, int]
    """The size that the boxes refer to."""
    boxes_xyxy_px: np.ndarray
    """(n, 4)."""
    labels: np.ndarray
    """(n,)."""


class Histogram(NamedTuple):
    """How many values lie between two edges."""

    counts: tuple[int, ...]
    edges: tuple[float, ...]
    """One more than counts."""


class Overview(NamedTuple):
    """What the page shows of a data set besides its faults."""

    names: tuple[str, ...]
    samples: dict[str, tuple[Labeled, ...]]
    """Random images of each part, always the same."""
    boxes_of_class: dict[str, tuple[int, ...]]
    """Of each part, by class."""
    objects_per_image: Histogram
    box_sides: Histogram
    """√area in pixels of the input size."""
    image_sizes: tuple[tuple[str, int], ...]
    """The most frequent sizes, width first, and the number of images; the last may be all others."""


def overview(inspection: Inspection) -> Overview:
    """Look at a data set as training reads it; parts that cannot be read are left out."""
    splits = {name: part.split for name, part in inspection.parts.items() if part.split is not None}
    tables = [_table(split) for split in splits.values()]
    names = inspection.classes.names if inspection.classes else ()
    per_image = np.concatenate([np.zeros(0, np.int64), *(np.diff(table.first_box) for table in tables)])
    sides = np.concatenate([np.zeros(0), *(box_sides(table, inspection.input_hw) for table in tables)])
    return Overview(
        names=names,
        samples={name: _samples(split) for name, split in splits.items()},
        boxes_of_class={
            name: tuple(np.bincount(_table(split).labels, minlength=len(names)).tolist())
            for name, split in splits.items()
        },
        objects_per_image=_of_counts(per_image),
        box_sides=_by_doubling(sides),
        image_sizes=_frequent_sizes(tables),
    )


def box_sides(table: RecordTable, input_hw: tuple[int, int]) -> np.ndarray:
    """(N,): √area of each box in pixels when its image is stretched to the input size."""
    owners = np.repeat(np.arange(len(table)), np.diff(table.first_box))
    scale_hw = np.array(input_hw) / table.sizes_hw[owners]
    wh = (table.boxes_xyxy_px[:, 2:] - table.boxes_xyxy_px[:, :2]).astype(np.float64)
    return np.sqrt(np.prod(wh * scale_hw[:, ::-1], axis=1))


def boxes_on_file(
    inspection: Inspection, path: Path, annotated_hw: Sequence[int] | np.ndarray, boxes_xyxy_px: np.ndarray
) -> tuple[Box, ...]:
    """Boxes in pixels of the file as it is shown, which may be a resized copy of what was annotated."""
    scale = np.tile(scale_of(inspection.facts.get(path), annotated_hw), 2)
    return tuple((x1, y1, x2, y2) for x1, y1, x2, y2 in (boxes_xyxy_px * scale).tolist())


def shown_hw(facts: ImageFacts, annotated_hw: tuple[int, int]) -> tuple[int, int]:
    """The size at which an image is shown and trained on: upright, unless it is annotated as stored."""
    return annotated_hw if facts.size_hw == annotated_hw else upright_size(facts)


def scale_of(facts: ImageFacts | None, annotated_hw: Sequence[int] | np.ndarray) -> tuple[float, float]:
    """How much wider and higher the file is than its annotations say."""
    height, width = map(int, annotated_hw)
    if facts is None or facts.problem is not None:
        return 1.0, 1.0
    shown = shown_hw(facts, (height, width))
    return shown[1] / width, shown[0] / height


def _table(split: Split) -> RecordTable:
    assert isinstance(split.records, RecordTable), "splits are read as tables"
    return split.records


def _samples(split: Split) -> tuple[Labeled, ...]:
    rng = np.random.default_rng(SEED)
    number = len(split.records)
    chosen = np.sort(rng.choice(number, min(number, NUM_SAMPLES), replace=False))
    return tuple(labeled(split, index) for index in chosen.tolist())


def labeled(split: Split, index: int) -> Labeled:
    """An image of a split with its labels."""
    record = split.records[index]
    size_hw = (record.info.height, record.info.width)
    return Labeled(split.image_dir / record.info.file_name, size_hw, record.boxes_xyxy_px, record.labels)


def _of_counts(values: np.ndarray) -> Histogram:
    """At most 30 bins of equal, whole width."""
    most = int(values.max(initial=0))
    width = most // 30 + 1
    edges = np.arange(0, most + width + 1, width)
    counts = np.histogram(values, edges - 0.5)[0]
    return Histogram(tuple(counts.tolist()), tuple(edges.tolist()))


def _by_doubling(values: np.ndarray) -> Histogram:
    """Two bins for every doubling, from 2 on or from the least value if that is larger."""
    low = np.floor(2 * np.log2(np.clip(values.min(initial=2048), 2, None)))
    high = np.ceil(2 * np.log2(np.clip(values.max(initial=2), 2, None)) + 1e-6)
    edges = 2 ** (np.arange(low, max(high, low + 1) + 1) / 2)
    counts = np.histogram(np.clip(values, edges[0], None), edges)[0]
    return Histogram(tuple(counts.tolist()), tuple(edges.tolist()))


def _frequent_sizes(tables: Sequence[RecordTable]) -> tuple[tuple[str, int], ...]:
    counts = Counter(size for table in tables for size in map(tuple, table.sizes_hw.tolist()))
    most = [(f"{width}×{height}", count) for (height, width), count in counts.most_common(MAX_SIZES)]
    others = counts.total() - sum(count for _, count in most)
    return (*most, *([(f"{len(counts) - MAX_SIZES} other sizes", others)] if others else []))
