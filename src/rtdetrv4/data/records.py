"""The records of a data set: everything known about its images before one is opened."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, overload

import numpy as np
from numpy.typing import NDArray

from rtdetrv4.errors import DatasetError
from rtdetrv4.types import ClassMap, ImageInfo

MAX_LEFT_OUT_SHARE, MAX_LEFT_OUT_SHARE_UNLABELED = 0.05, 0.5


def too_many(num_left_out: int, num_images: int, *, is_labeled: bool = True) -> bool:
    """Whether images that are missing or unreadable are more than 5 %, or all; a single one is always tolerable.

    Of images without labels half may be: nobody chose them one by one, and nothing is measured on them.
    """
    share = MAX_LEFT_OUT_SHARE if is_labeled else MAX_LEFT_OUT_SHARE_UNLABELED
    return num_left_out > max(1, share * num_images) or 0 < num_left_out == num_images


class Record(NamedTuple):
    """One image and its n boxes; n may be 0."""

    info: ImageInfo
    boxes_xyxy_px: NDArray[np.float32]
    """(n, 4), inside the image, of positive area."""
    labels: NDArray[np.int64]
    """(n,) in [0, K)."""
    is_crowd: NDArray[np.bool_]
    """(n,): regions of many objects, which training omits and evaluation does not score."""
    areas: NDArray[np.float64]
    """(n,) px², by which evaluation assigns size classes: as annotated (in COCO, of the mask), else of the box."""


@dataclass(frozen=True, eq=False)
class RecordTable(Sequence[Record]):
    """All records of a split, packed into a few arrays from which single records are sliced on demand.

    A hundred thousand small objects would be copied page by page into every forked worker, because reading a Python
    object writes its reference count. A few arrays stay shared, and pickle quickly where workers are spawned.
    """

    image_ids: NDArray[np.int64]
    file_names: NDArray[np.bytes_]
    """(M,) UTF-8 with `surrogatepass`, relative to the image folder, with forward slashes."""
    sizes_hw: NDArray[np.int32]
    first_box: NDArray[np.int64]
    """(M + 1,): image i has the boxes from first_box[i] up to, but not including, first_box[i + 1]."""
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
        file_name = self.file_names[index : index + 1].item().decode(errors="surrogatepass")
        return Record(
            ImageInfo(int(self.image_ids[index]), file_name, height, width),
            self.boxes_xyxy_px[boxes],
            self.labels[boxes],
            self.is_crowd[boxes],
            self.areas[boxes],
        )

    def __iter__(self) -> Iterator[Record]:
        return (self[i] for i in range(len(self)))

    def subset(self, indices: Sequence[int]) -> RecordTable:
        """The records of some images, in the given order."""
        chosen = np.asarray(indices, dtype=np.int64)
        counts = np.diff(self.first_box)[chosen]
        first_box = np.concatenate([[0], np.cumsum(counts)])
        boxes = np.repeat(self.first_box[chosen] - first_box[:-1], counts) + np.arange(first_box[-1])
        return RecordTable(
            image_ids=self.image_ids[chosen],
            file_names=self.file_names[chosen],
            sizes_hw=self.sizes_hw[chosen],
            first_box=first_box,
            boxes_xyxy_px=self.boxes_xyxy_px[boxes],
            labels=self.labels[boxes],
            is_crowd=self.is_crowd[boxes],
            areas=self.areas[boxes],
        )

    def fingerprint(self, classes: ClassMap) -> str:
        """The SHA-256 of class names, file names, image sizes, boxes and labels."""
        digest = hashlib.sha256("\0".join(classes.names).encode())
        for array in (self.file_names, self.sizes_hw, self.first_box, self.boxes_xyxy_px, self.labels):
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()


class Split(NamedTuple):
    """A split of a data set, ready for training or evaluation."""

    image_dir: Path
    records: Sequence[Record]
    classes: ClassMap
    fingerprint: str
    """`RecordTable.fingerprint`: splits with equal fingerprints have equal annotations."""
    problems: tuple[str, ...]
    """What was dropped, corrected or looks wrong, with counts; one sentence each."""
    folders: tuple[tuple[str, int], ...] = ()
    """Of images without labels: the paths they were looked for in, and how many of them are from each."""


def has_objects(split: Split) -> bool:
    """Whether a split has any box but crowds."""
    return any((~record.is_crowd).any() for record in split.records)


def require_objects(split: Split) -> None:
    """Check that a split has something to learn from.

    Raises:
        DatasetError: it has no boxes, or only crowds.
    """
    if has_objects(split):
        return
    num_crowds = sum(len(record.labels) for record in split.records)
    if num_crowds:
        raise DatasetError(
            f"nothing to train on: all {num_crowds} boxes of the training images in {split.image_dir} are crowds "
            '("iscrowd": 1, as CVAT writes for objects drawn with the brush); set it to 0 where a box is one object'
        )
    raise DatasetError(
        f"nothing to train on: none of the {len(split.records)} training images in {split.image_dir} has a box; add "
        "annotations"
    )


class Splits(NamedTuple):
    """The splits of a data set; a missing split is None."""

    train: Split | None
    val: Split | None
    test: Split | None
    notes: tuple[str, ...] = ()
    """Which files were read, and what was decided about them; one sentence each."""
    is_val_made: bool = False
    """Whether `val` was taken out of the training images, because there was none."""
    unlabeled: Split | None = None
    """Images without labels, from which training learns besides; no part of the data set."""

    @property
    def parts(self) -> dict[str, Split]:
        """The splits that there are, by name."""
        named = {"train": self.train, "val": self.val, "test": self.test}
        return {name: split for name, split in named.items() if split is not None}
