"""COCO average precision, as pycocotools computes it."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import logging
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from rtdetrv4.data.records import Record
from rtdetrv4.errors import DatasetError, did_you_mean
from rtdetrv4.types import ClassMap, ImageInfo, PostprocessedBatch

logger: logging.Logger = logging.getLogger(__name__)

NAMES_ELSEWHERE: Mapping[str, str] = {
    "box": "ap",
    "map": "ap",
    "mAP": "ap",
    "map_50": "ap50",
    "map50": "ap50",
    "map50_95": "ap",
    "map75": "ap75",
    "map_75": "ap75",
    "map_large": "ap_large",
    "map_medium": "ap_medium",
    "map_per_class": "per_class",
    "map_small": "ap_small",
    "maps": "per_class",
    "mar_100": "ar100",
}
"""What other packages call a number of ours."""


class ImageDetections(NamedTuple):
    """The detections in one image, by descending score."""

    boxes_xyxy_px: np.ndarray
    """(n, 4) float32, pixels of the original image."""
    scores: np.ndarray
    """(n,) float32 in [0, 1]."""
    labels: np.ndarray
    """(n,) int64 in [0, K)."""


@dataclasses.dataclass(frozen=True)
class Metrics:
    """The twelve COCO numbers and the AP of every class.

    A number is NaN where it is undefined: the ground truth has no object of that size or no box of that class.

    References:
        https://cocodataset.org/#detection-eval
    """

    ap: float
    """Mean over classes and the IoU thresholds 0.50, 0.55, ... 0.95."""
    ap50: float
    ap75: float
    ap_small: float
    """Objects smaller than 32² pixels."""
    ap_medium: float
    ap_large: float
    """Objects larger than 96² pixels."""
    ar1: float
    """Recall with at most one detection per image and class; mean over classes and IoU thresholds."""
    ar10: float
    ar100: float
    ar_small: float
    ar_medium: float
    ar_large: float
    per_class: Mapping[str, float]
    """AP of each class, by name."""
    per_class_ap50: Mapping[str, float]
    num_images: int

    if not TYPE_CHECKING:  # which would take any name for one that there is

        def __getattr__(self, name: str) -> Any:
            """Say what a number is called here that other packages call `name`."""
            known = [field.name for field in dataclasses.fields(self)]
            meant = NAMES_ELSEWHERE.get(name)
            hint = f' Did you mean "{meant}"?' if meant else did_you_mean(name, known) or f" Known: {', '.join(known)}."
            raise AttributeError(f'Metrics have no "{name}".{hint}')

    def to_dict(self) -> dict[str, Any]:
        """Return all fields, ready for `json.dumps`, with None instead of NaN."""

        def plain(value: Any) -> Any:
            if isinstance(value, Mapping):
                return {name: plain(item) for name, item in value.items()}
            return None if isinstance(value, float) and math.isnan(value) else value

        return {field.name: plain(getattr(self, field.name)) for field in dataclasses.fields(self)}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Metrics:
        """The inverse of `to_dict`; other keys are ignored.

        Raises:
            KeyError: a field is missing.
        """

        def number(value: Any) -> Any:
            if isinstance(value, Mapping):
                return {name: number(item) for name, item in value.items()}
            return math.nan if value is None else value

        return cls(**{field.name: number(content[field.name]) for field in dataclasses.fields(cls)})


class CocoEvaluator:
    """Collects detections image by image and computes COCO metrics over all of `records`.

    All boxes of an image without detections count as missed; images that could not be read are left out. COCO's limit
    of 100 detections applies per image *and class*, as in pycocotools, so up to 100·K detections per image are used.

    With several processes, each rank calls `update` with its own images, `state` is gathered, and any rank that needs
    the result calls `merge`. Detections are stored by image, so an image that two ranks have seen counts once.

    Args:
        records: the ground truth, one per image.
        classes: the K classes that labels refer to.

    Raises:
        DatasetError: there are no images, or two of them have the same id.
    """

    def __init__(self, records: Iterable[Record], classes: ClassMap) -> None:
        # Sorted by id, as in pycocotools: the order decides between equal scores in different images.
        self._records: tuple[Record, ...] = tuple(sorted(records, key=lambda record: record.info.image_id))
        self.classes = classes
        self._detections: dict[int, ImageDetections | None] = {}
        self._num_added = self._num_invalid = 0
        self._image_ids = {record.info.image_id for record in self._records}
        if not self._records:
            raise DatasetError("there are no images to evaluate on; give a data set with a validation split")
        if len(self._image_ids) < len(self._records):
            raise DatasetError(
                f"{len(self._records)} images share {len(self._image_ids)} image ids; give every image a unique id"
            )

    @property
    def records(self) -> tuple[Record, ...]:
        """The ground truth of the images that could be read, by ascending image id."""
        unreadable = {image_id for image_id, found in self._detections.items() if found is None}
        return tuple(record for record in self._records if record.info.image_id not in unreadable)

    @property
    def detections(self) -> tuple[ImageDetections, ...]:
        """The detections in each image, in the order of `records`."""
        nothing = ImageDetections(
            np.zeros((0, 4), dtype=np.float32), np.zeros(0, dtype=np.float32), np.zeros(0, dtype=np.int64)
        )
        return tuple(self._detections.get(record.info.image_id) or nothing for record in self.records)

    def reset(self) -> None:
        """Forget all detections."""
        self._detections.clear()
        self._num_added = self._num_invalid = 0

    @property
    def is_invalid(self) -> bool:
        """Whether everything that was added is NaN or infinite."""
        return 0 < self._num_added == self._num_invalid

    def update(self, infos: Sequence[ImageInfo], found: PostprocessedBatch) -> None:
        """Add the detections of a batch; they replace earlier ones of the same images.

        Args:
            infos: the B images of the batch.
            found: their detections, on any device and in any float type.

        Raises:
            DatasetError: an image is not in the ground truth, or a label is not one of its classes.
        """
        scores = found.scores.detach().float().cpu().numpy()
        boxes = found.boxes_xyxy_px.detach().float().cpu().numpy()
        self.add(infos, boxes, scores, found.labels.detach().cpu().numpy())

    def add(
        self, infos: Sequence[ImageInfo], boxes_xyxy_px: np.ndarray, scores: np.ndarray, labels: np.ndarray
    ) -> None:
        """Add the detections of a batch as `update` does, without torch.

        Args:
            infos: the B images of the batch.
            boxes_xyxy_px: B×N×4 float32, pixels of the original images.
            scores: B×N float32 in [0, 1], in descending order.
            labels: B×N integers in [0, K).

        Raises:
            DatasetError: an image is not in the ground truth, or a label is not one of its classes.
        """
        if labels.size and not 0 <= labels.min() <= labels.max() < self.classes.num_classes:
            raise DatasetError(
                f"the detections have labels {labels.min()}...{labels.max()}, but the data set has classes "
                f"0...{self.classes.num_classes - 1}; evaluate a model that was trained for these classes"
            )
        finite = np.isfinite(scores) & np.isfinite(boxes_xyxy_px).all(axis=-1)
        if not finite.all() and not self._num_invalid:
            first = infos[int(np.flatnonzero(~finite.all(axis=1))[0])].file_name
            logger.warning("detections in %s are NaN or infinite; they and others like them are ignored", first)
        self._num_added += finite.size
        self._num_invalid += int((~finite).sum())
        for info, *arrays, keep in zip(infos, boxes_xyxy_px, scores, labels, finite, strict=True):
            if info.image_id not in self._image_ids:
                raise DatasetError(
                    f"image id {info.image_id} ({info.file_name}) is not among the {len(self._records)} images of the "
                    "ground truth; evaluate on the split that the evaluator was created for"
                )
            found_here = ImageDetections(*(array[keep] for array in arrays))
            self._detections[info.image_id] = found_here if info.is_readable else None

    def state(self) -> dict[int, ImageDetections | None]:
        """Return the detections by image id, to be gathered from all ranks for `merge`; None: could not be read."""
        return dict(self._detections)

    def merge(self, states: Iterable[Mapping[int, ImageDetections | None]]) -> None:
        """Add the states of other ranks; this rank's own may be among them."""
        for state in states:
            self._detections.update(state)

    def results(self) -> list[dict[str, Any]]:
        """Return all detections in COCO's result format, which evaluation servers accept as a JSON file.

        Category ids are those of the annotations; boxes are x, y, width, height in pixels.
        """
        category_ids = self.classes.category_ids
        return [
            {"image_id": record.info.image_id, "category_id": category_ids[label], "bbox": box, "score": score}
            for record, found in zip(self.records, self.detections, strict=True)
            for box, score, label in zip(
                _xywh(found.boxes_xyxy_px).tolist(), found.scores.tolist(), found.labels.tolist(), strict=True
            )
        ]

    def compute(self) -> Metrics:
        """Compute the metrics over all images from the detections so far."""
        total, unseen = len(self._records), len(self._records) - len(self._detections)
        if unseen:
            logger.warning("%d of %d images were not evaluated; their boxes count as missed", unseen, total)
        import faster_coco_eval as coco  # takes a while, and collecting detections does not need it

        with _paused_garbage_collection():
            truth = coco.COCO(self._dataset(self._annotations()))
            found = coco.COCO(self._dataset(self._predictions()))
            evaluation = coco.COCOeval_faster(truth, found, "bbox", print_function=logger.debug)
            evaluation.evaluate()
            evaluation.accumulate()
        precision = np.asarray(evaluation.eval["precision"])  # IoU thresholds × recalls × K × areas × limits
        recall = np.asarray(evaluation.eval["recall"])  # IoU thresholds × K × areas × limits
        names = self.classes.names
        return Metrics(
            ap=_mean(precision[..., 0, -1]),
            ap50=_mean(precision[0, ..., 0, -1]),
            ap75=_mean(precision[5, ..., 0, -1]),
            ap_small=_mean(precision[..., 1, -1]),
            ap_medium=_mean(precision[..., 2, -1]),
            ap_large=_mean(precision[..., 3, -1]),
            ar1=_mean(recall[..., 0, 0]),
            ar10=_mean(recall[..., 0, 1]),
            ar100=_mean(recall[..., 0, 2]),
            ar_small=_mean(recall[..., 1, -1]),
            ar_medium=_mean(recall[..., 2, -1]),
            ar_large=_mean(recall[..., 3, -1]),
            per_class={name: _mean(precision[:, :, k, 0, -1]) for k, name in enumerate(names)},
            per_class_ap50={name: _mean(precision[0, :, k, 0, -1]) for k, name in enumerate(names)},
            num_images=len(self.records),
        )

    # COCO's structure, but image ids are positions of records and category ids are labels, because the C++ code stores
    # both as doubles, in which large ids would collide.
    def _dataset(self, annotations: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "images": [{"id": index} for index in range(len(self.records))],
            "categories": [{"id": k, "name": name} for k, name in enumerate(self.classes.names)],
            "annotations": annotations,
        }

    def _annotations(self) -> list[dict[str, Any]]:
        areas = np.concatenate([record.areas for record in self.records])
        is_crowd = np.concatenate([record.is_crowd for record in self.records])
        return _rows(self.records, area=areas, iscrowd=is_crowd.astype(np.int64))

    def _predictions(self) -> list[dict[str, Any]]:
        detections = self.detections
        sides = _xywh(np.concatenate([found.boxes_xyxy_px for found in detections]))[:, 2:]
        scores = np.concatenate([found.scores for found in detections])
        return _rows(detections, area=sides[:, 0] * sides[:, 1], score=scores)


def _rows(images: Sequence[Record] | Sequence[ImageDetections], **more: np.ndarray) -> list[dict[str, Any]]:
    """Return one dict per box, with ids from 1, because id 0 means "not matched" to the C++ code."""
    columns = {
        "image_id": np.repeat(np.arange(len(images)), [len(image.labels) for image in images]),
        "category_id": np.concatenate([image.labels for image in images]),
        "bbox": _xywh(np.concatenate([image.boxes_xyxy_px for image in images])),
        **more,
    }
    values = (column.tolist() for column in columns.values())
    keys = ("id", *columns)
    return [dict(zip(keys, row, strict=True)) for row in zip(range(1, 1 + len(columns["bbox"])), *values, strict=True)]


def _xywh(boxes_xyxy: np.ndarray) -> np.ndarray:
    """Return (n, 4) float64: left, top, width, height."""
    boxes = np.asarray(boxes_xyxy, dtype=np.float64).reshape(-1, 4)
    return np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)


def _mean(values: np.ndarray) -> float:
    """Return the mean of the defined values, or NaN; COCO marks undefined ones with -1."""
    defined = values[values > -1]
    return float(defined.mean()) if defined.size else math.nan


@contextlib.contextmanager
def _paused_garbage_collection() -> Iterator[None]:
    """Pause the garbage collector, whose repeated scans of a million new dicts would triple the time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
