"""The dataset: the images of a split as training or evaluation samples of one size."""

from __future__ import annotations

import logging
from functools import partial
from typing import NamedTuple

import cv2
import numpy as np
import torch
from numpy.random import Generator
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from rtdetrv4.data.cache import ImageCache
from rtdetrv4.data.decode import read_image, reduction_for
from rtdetrv4.data.mosaic import draw_mosaic, paint
from rtdetrv4.data.records import Record, Split, too_many
from rtdetrv4.data.transforms import (
    Augmentation,
    Window,
    centers_inside,
    clip_boxes,
    draw_iou_crop,
    draw_random_crop,
    draw_zoom_out,
    flip_matrix,
    map_boxes,
    photometric,
    place,
)
from rtdetrv4.errors import DatasetError
from rtdetrv4.runtime.preprocess import ResizeMode, content_of, pad, resize
from rtdetrv4.types import ImageInfo, View

logger: logging.Logger = logging.getLogger(__name__)


class Sample(NamedTuple):
    """One image, ready to be batched."""

    image: Tensor
    """3×H×W uint8 RGB, a view of an H×W×3 array."""
    labels: NDArray[np.int64]
    """(n,) in [0, K)."""
    boxes: NDArray[np.float32]
    """(n, 4), cxcywh in [0, 1]."""
    info: ImageInfo
    views: tuple[View, ...] = ()
    """What it is made of."""


class LabeledIndex(NamedTuple):
    """The index of an image, with labels that take the place of those of its record."""

    number: int
    """The index as `DetectionDataset` takes it: from the number of images on, a repetition."""
    boxes_xyxy_px: NDArray[np.float32]
    """(n, 4), inside the image, of positive area."""
    labels: NDArray[np.int64]
    """(n,) in [0, K)."""


class _UnreadableError(Exception):
    """An image file cannot be decoded; this has been reported."""


class DetectionDataset(Dataset[Sample]):
    """The images of a split, augmented for training or only resized for evaluation.

    A sample depends only on (seed, epoch, index), not on the number of workers or on earlier samples. Indices from
    `len(self)` on are repetitions of images in the same epoch, augmented anew.

    An image that cannot be decoded is reported once. Training uses the next readable sample in its place; evaluation
    uses a black image, marked as unreadable.

    Args:
        split: the images and boxes.
        image_size: (H, W) of the samples.
        stage: the augmentation of the first epoch, or None for evaluation.
        seed: the seed of all augmentation.
        resize: how images fill the samples. With "letterbox", crops and mosaics keep their aspect ratio too.
        cache: holds the images of `split`; None decodes them every time. Samples do not depend on it.
    """

    def __init__(
        self,
        split: Split,
        image_size: tuple[int, int],
        stage: Augmentation | None = None,
        seed: int = 0,
        cache: ImageCache | None = None,
        resize: ResizeMode = "stretch",
    ) -> None:
        self.split = split
        self.image_size = image_size
        self.resize: ResizeMode = resize
        self.cache = cache
        self._training = stage is not None
        self._seed = seed
        # Workers keep their own copy of this object for all epochs, so whatever changes is in shared memory.
        self._state = torch.zeros(1 + len(Augmentation._fields), dtype=torch.float64).share_memory_()
        self._unreadable = torch.zeros(len(split.records), dtype=torch.bool).share_memory_()
        self.set_epoch(0, stage or Augmentation())

    def __len__(self) -> int:
        return len(self.split.records)

    def __getitem__(self, index: int | LabeledIndex) -> Sample:
        """Load the sample of image `index`, for training with the labels that it may come with.

        Raises:
            DatasetError: more than 5 % of the images cannot be decoded.
        """
        given = index if isinstance(index, LabeledIndex) else None
        number = index.number if isinstance(index, LabeledIndex) else index
        if not self._training:
            return self._plain(number)
        epoch, stage = int(self._state[0]), Augmentation(*self._state[1:].tolist())
        repetition, first = divmod(number, len(self))
        for stand_in in range(len(self)):
            shifted = (first + stand_in) % len(self)
            record = self.split.records[shifted]
            if given is not None and stand_in == 0:
                record = _relabeled(record, given)
            try:
                rng = np.random.default_rng((self._seed, epoch, shifted + repetition * len(self)))
                return self._augmented(shifted, record, stage, rng)
            except _UnreadableError:
                continue
        raise DatasetError(f"none of the {len(self)} images in {self.split.image_dir} can be read")

    def set_epoch(self, epoch: int, stage: Augmentation) -> None:
        """Switch to the random numbers of `epoch` and the augmentation of `stage`, in running workers too."""
        self._state.copy_(torch.tensor([epoch, *stage], dtype=torch.float64))

    def read(self, index: int) -> NDArray[np.uint8] | None:
        """The pixels of image `index`, H×W×3 RGB, or None if it cannot be decoded.

        They are at full resolution, as in prediction, so that metrics describe what users will run.

        Raises:
            DatasetError: more than 5 % of the images cannot be decoded.
        """
        try:
            return self._read(index, scale=1.0)
        except _UnreadableError:
            return None

    @property
    def num_unreadable(self) -> int:
        """The number of images that could not be decoded so far, over all workers."""
        return int(self._unreadable.sum())

    def _plain(self, index: int) -> Sample:
        record = self.split.records[index]
        size_hw = (record.info.height, record.info.width)
        content = content_of(size_hw, self.image_size, self.resize)
        pixels = self.read(index)
        if pixels is not None:
            image = pad(resize(pixels, (content.height, content.width)), content, self.image_size)
        else:
            image = np.zeros((*self.image_size, 3), np.uint8)
            record = record._replace(info=record.info._replace(is_readable=False))
        boxes, labels = _trained_boxes(record)
        boxes_px = boxes / np.tile(size_hw[::-1], 2) * np.tile((content.width, content.height), 2)
        return self._sample(image, boxes_px + np.tile((content.left, content.top), 2), labels, (), record)

    def _augmented(self, index: int, record: Record, stage: Augmentation, rng: Generator) -> Sample:
        if rng.random() < stage.mosaic:
            return self._sample(*self._mosaic(index, stage, rng), record=record)
        return self._sample(*self._cropped(index, record, stage, rng), record=record)

    def _cropped(
        self, index: int, record: Record, stage: Augmentation, rng: Generator
    ) -> tuple[NDArray[np.uint8], NDArray[np.float64], NDArray[np.int64], tuple[View, ...]]:
        """Pixels, pixel boxes, labels and view of one image after zoom-out, crop, flip and photometric changes."""
        boxes, labels = _trained_boxes(record)
        size_hw = (record.info.height, record.info.width)
        window = Window(0, 0, size_hw[1], size_hw[0])
        if stage.random_crop:
            window = draw_random_crop(rng, size_hw, stage.random_crop)
        if rng.random() < stage.zoom_out:
            window = draw_zoom_out(rng, size_hw)
        if rng.random() < stage.iou_crop:
            window = draw_iou_crop(rng, boxes, window)
            kept = centers_inside(boxes, window)
            boxes, labels = boxes[kept], labels[kept]
        flip = rng.random() < stage.flip

        content = content_of((window.height, window.width), self.image_size, self.resize)
        out_hw = (content.height, content.width)
        pixels = self._read(index, max(out_hw[0] / window.height, out_hw[1] / window.width))
        placement = place(window, size_hw, pixels.shape[:2], out_hw)  # pyright: ignore[reportArgumentType]
        shown_hw = (_length(placement.out_rows), _length(placement.out_columns))
        # The fill around a zoomed-out image stays black: it is added after the photometric changes.
        shown = resize(pixels[placement.rows, placement.columns], shown_hw)
        shown = photometric(shown, rng, stage.photometric, permutes=bool(stage.permutes))
        if shown_hw == out_hw:
            image = shown
        else:
            image = np.zeros((*out_hw, 3), np.uint8)
            image[placement.out_rows, placement.out_columns] = shown
        matrix = placement.matrix
        if flip:
            image = cv2.flip(image, 1)
            matrix = flip_matrix(matrix, out_hw[1])
        boxes, kept = clip_boxes(map_boxes(boxes, matrix), out_hw, (window.height, window.width))
        boxes += np.tile((content.left, content.top), 2)
        shifted = matrix + np.array([[0.0, 0.0, content.left], [0.0, 0.0, content.top]])
        view = self._view(index, size_hw, shifted)._replace(
            shown=(
                window.left / size_hw[1],
                window.top / size_hw[0],
                (window.left + window.width) / size_hw[1],
                (window.top + window.height) / size_hw[0],
            )
        )
        return pad(image, content, self.image_size), boxes[kept], labels[kept], (view,)

    def _mosaic(
        self, index: int, stage: Augmentation, rng: Generator
    ) -> tuple[NDArray[np.uint8], NDArray[np.float64], NDArray[np.int64], tuple[View, ...]]:
        """Pixels, pixel boxes, labels and views of a mosaic of this image and three others."""
        indices = [index, *rng.integers(len(self), size=3).tolist()]
        records = [self.split.records[i] for i in indices]
        sizes_hw = np.array([(record.info.height, record.info.width) for record in records], dtype=np.int32)
        matrices, shown_hw = draw_mosaic(rng, sizes_hw, self.image_size, stage, self.resize)
        if rng.random() < stage.flip:
            matrices = flip_matrix(matrices, self.image_size[1])

        scales = np.linalg.norm(matrices[..., :2], ord=2, axis=(1, 2)).tolist()
        image = np.zeros((*self.image_size, 3), np.uint8)
        boxes, labels, views = [], [], []
        for i, record, matrix, scale in zip(indices, records, matrices, scales, strict=True):
            size_hw = (record.info.height, record.info.width)
            paint(image, self._read(i, scale), size_hw, matrix)
            own_boxes, own_labels = _trained_boxes(record)
            boxes.append(map_boxes(own_boxes, matrix))
            labels.append(own_labels)
            views.append(self._view(i, size_hw, matrix))
        clipped, kept = clip_boxes(np.concatenate(boxes), self.image_size, shown_hw)
        image = photometric(image, rng, stage.photometric)
        return image, clipped[kept], np.concatenate(labels)[kept], tuple(views)

    def _view(self, index: int, size_hw: tuple[int, int], matrix: NDArray[np.float64]) -> View:
        """The view that an affine matrix (2, 3), from pixels of the image to pixels of the sample, describes."""
        (height, width), (out_height, out_width) = size_hw, self.image_size
        shares = matrix * np.array([width, height, 1.0]) / np.array([[out_width], [out_height]])
        return View(index, tuple(shares.ravel().tolist()))

    def _read(self, index: int, scale: float) -> NDArray[np.uint8]:
        if self._unreadable[index]:
            raise _UnreadableError
        info = self.split.records[index].info
        decode = partial(read_image, self.split.image_dir / info.file_name, (info.height, info.width), scale)
        try:
            return decode() if self.cache is None else self.cache.read(index, reduction_for(scale), decode)
        except DatasetError as error:
            self._unreadable[index] = True
            is_labeled = bool(self.split.classes.names)
            if too_many(self.num_unreadable, len(self), is_labeled=is_labeled):
                cure = "delete their entries from the annotations" if is_labeled else "remove them from their folders"
                raise DatasetError(
                    f"{self.num_unreadable} of {len(self)} images cannot be read, the last one because {error}; "
                    f"replace the files, or {cure}"
                ) from error
            logger.warning("%s; %s", error, "skipped" if self._training else "left out of the evaluation")
            raise _UnreadableError from error

    def _sample(
        self,
        image: NDArray[np.uint8],
        boxes_xyxy_px: NDArray[np.float64],
        labels: NDArray[np.int64],
        views: tuple[View, ...],
        record: Record,
    ) -> Sample:
        height, width = self.image_size
        low, high = boxes_xyxy_px[:, :2], boxes_xyxy_px[:, 2:]
        boxes = np.concatenate([(low + high) / 2, high - low], axis=1) / [width, height, width, height]
        if not image.flags.writeable:  # it belongs to the cache
            image = image.copy()
        return Sample(torch.from_numpy(image).permute(2, 0, 1), labels, boxes.astype(np.float32), record.info, views)


def _trained_boxes(record: Record) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Boxes and labels without crowds, which are regions rather than objects."""
    return record.boxes_xyxy_px[~record.is_crowd], record.labels[~record.is_crowd]


def _relabeled(record: Record, given: LabeledIndex) -> Record:
    boxes = given.boxes_xyxy_px
    return record._replace(
        boxes_xyxy_px=boxes,
        labels=given.labels,
        is_crowd=np.zeros(len(boxes), dtype=np.bool_),
        areas=np.prod(boxes[:, 2:] - boxes[:, :2], axis=1, dtype=np.float64),
    )


def _length(part: slice) -> int:
    return part.stop - part.start
