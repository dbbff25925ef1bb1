"""The images that the ranges of an int8 network are measured on."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from rtdetrv4.data.decode import read_image
from rtdetrv4.data.records import Record, Split
from rtdetrv4.errors import DatasetError
from rtdetrv4.runtime.preprocess import ResizeMode, preprocess

NUM_IMAGES = 300
"""As many as NNCF takes by default."""
SIDES_PX = (32, 96)
"""Where small, medium and large objects meet in COCO: the side of a square of the same area."""


class CalibrationImages(Sequence[NDArray[np.float32]]):
    """Images of a data set as inputs of the network, 1×3×h×w in [0, 1], read when they are asked for.

    Args:
        split: usually the training part, so that the images that accuracy is measured on do not choose the ranges.
        size_hw: height and width of the input.
        resize: how images fill it.
        count: at most so many images; those that cannot be read are left out.

    Raises:
        DatasetError: none of the chosen images can be read.
    """

    def __init__(
        self, split: Split, size_hw: tuple[int, int], resize: ResizeMode = "stretch", count: int = NUM_IMAGES
    ) -> None:
        self._image_dir = split.image_dir
        self._size_hw = size_hw
        self._resize: ResizeMode = resize
        chosen = [split.records[index] for index in choose_images(split.records, size_hw, count)]
        self._records = [record for record in chosen if self._is_readable(record)]
        if not self._records:
            raise DatasetError(
                f"none of {len(chosen)} images in {split.image_dir} can be read, and int8 needs images to measure its "
                "ranges on; check the data with: rtdetrv4 doctor"
            )

    @property
    def file_names(self) -> tuple[str, ...]:
        """The chosen images, in order, relative to the image folder."""
        return tuple(record.info.file_name for record in self._records)

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> NDArray[np.float32]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return preprocess([self._read(self._records[index])], self._size_hw, self._resize)

    def _read(self, record: Record) -> NDArray[np.uint8]:
        info = record.info
        scale = max(self._size_hw[0] / info.height, self._size_hw[1] / info.width)
        return read_image(self._image_dir / info.file_name, (info.height, info.width), scale)

    def _is_readable(self, record: Record) -> bool:
        try:
            self._read(record)
        except DatasetError:
            return False
        return True


def choose_images(records: Sequence[Record], size_hw: tuple[int, int], count: int = NUM_IMAGES) -> list[int]:
    """Choose images that show every class at every size, the same ones whatever their order.

    Greedy: the next image is the one that adds most to what was shown least. A cell is a class at one of three sizes in
    the input, and an image adds 1 / (1 + images that show the cell already) for each of its cells.

    Args:
        records: the images and their boxes.
        size_hw: height and width of the input.
        count: images to choose; all if there are no more.

    Returns:
        Indices into `records`, in the order in which they were chosen.
    """
    names = [record.info.file_name for record in records]
    # Ties are broken by a digest: neighbors in a folder often show the same scene.
    order = sorted(range(len(names)), key=lambda index: hashlib.sha256(names[index].encode()).digest())
    shows = _cells([records[index] for index in order], size_hw)
    times_shown = np.zeros(shows.shape[1])
    gain = shows.sum(axis=1, dtype=np.float64)
    chosen: list[int] = []
    for _ in range(min(count, len(order))):
        best = int(gain.argmax())
        chosen.append(order[best])
        cells = np.flatnonzero(shows[best])
        gain -= shows[:, cells] @ (1 / (1 + times_shown[cells]) - 1 / (2 + times_shown[cells]))
        gain[best] = -np.inf
        times_shown[cells] += 1
    return chosen


def _cells(records: Sequence[Record], size_hw: tuple[int, int]) -> NDArray[np.bool_]:
    """(M, 3·K), Fortran order: whether an image shows a class at a size."""
    if not records:
        return np.zeros((0, 0), dtype=np.bool_)
    labels = np.concatenate([record.labels for record in records])
    boxes = np.concatenate([record.boxes_xyxy_px for record in records])
    counts = [len(record.labels) for record in records]
    scales = [size_hw[0] / record.info.height * size_hw[1] / record.info.width for record in records]
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]) * np.repeat(scales, counts)
    sizes = np.digitize(areas, np.square(SIDES_PX))
    num_sizes = len(SIDES_PX) + 1
    shows = np.zeros((len(records), num_sizes * (labels.max(initial=-1) + 1)), dtype=np.bool_, order="F")
    shows[np.repeat(np.arange(len(records)), counts), num_sizes * labels + sizes] = True
    return shows
