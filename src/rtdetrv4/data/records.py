"""What is known of the images of a data set before any of them is opened."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, overload

import numpy as np
from numpy.typing import NDArray

from rtdetrv4.types import ClassMap, ImageInfo


class Record(NamedTuple):
    """One image and its n boxes; n may be 0."""

    info: ImageInfo
    boxes_xyxy_px: NDArray[np.float32]
    """(n, 4), inside the image, of positive area."""
    labels: NDArray[np.int64]
    """(n,) in [0, K)."""
    is_crowd: NDArray[np.bool_]
    """(n,): regions of many objects; evaluation ignores matches with them and training leaves them out."""
    areas: NDArray[np.float64]
    """(n,) px²: the file's own (of the mask, in COCO), which evaluation sorts objects by, or the box's."""


@dataclass(frozen=True, eq=False)
class RecordTable(Sequence[Record]):
    """All records of a split, packed in a few arrays and cut out on demand.

    A hundred thousand small objects would be copied page by page into every forked worker, because reading a Python
    object writes its reference count. A dozen arrays stay shared, and pickle fast where workers are spawned.
    """

    image_ids: NDArray[np.int64]
    file_names: NDArray[np.bytes_]
    """(M,) UTF-8, relative to the image folder, with forward slashes."""
    sizes_hw: NDArray[np.int32]
    first_box: NDArray[np.int64]
    """(M + 1,): the boxes of image i are first_box[i] to first_box[i + 1]."""
    boxes_xyxy_px: NDArray[np.float32]
    labels: NDArray[np.int64]
    is_crowd: NDArray[np.bool_]
    areas: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.image_ids)

    @overload
    def __getitem__(self, index: int) -> Record: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Record, ...]: ...
    def __getitem__(self, index: int | slice) -> Record | tuple[Record, ...]:
        if isinstance(index, slice):
            return tuple(self[i] for i in range(*index.indices(len(self))))
        if not -len(self) <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        index = index % len(self)
        height, width = self.sizes_hw[index].tolist()
        boxes = slice(self.first_box[index], self.first_box[index + 1])
        return Record(
            ImageInfo(int(self.image_ids[index]), self.file_names[index : index + 1].item().decode(), height, width),
            self.boxes_xyxy_px[boxes],
            self.labels[boxes],
            self.is_crowd[boxes],
            self.areas[boxes],
        )

    def __iter__(self) -> Iterator[Record]:
        return (self[i] for i in range(len(self)))

    def fingerprint(self, classes: ClassMap) -> str:
        """SHA-256 over class names, file names, image sizes, boxes and labels."""
        digest = hashlib.sha256("\0".join(classes.names).encode())
        for array in (self.file_names, self.sizes_hw, self.first_box, self.boxes_xyxy_px, self.labels):
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()


class Split(NamedTuple):
    """One split of a data set, ready to train on or to evaluate with."""

    image_dir: Path
    records: Sequence[Record]
    classes: ClassMap
    fingerprint: str
    """`RecordTable.fingerprint`: equal fingerprints, equal annotations."""
    problems: tuple[str, ...]
    """What was dropped, mended or looks wrong, counted; one sentence each."""


class Splits(NamedTuple):
    """The parts of a data set; a part that is not there is None."""

    train: Split | None
    val: Split | None
    test: Split | None
