"""Everything that an evaluation can tell about a detector, as numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from rtdetrv4.data.records import Record
from rtdetrv4.evaluation.average_precision import RECALLS, average_precision, mean_defined
from rtdetrv4.evaluation.calibration import Calibration, calibrate
from rtdetrv4.evaluation.coco_evaluator import ImageDetections, Metrics
from rtdetrv4.evaluation.galleries import Galleries, choose_examples
from rtdetrv4.evaluation.matching import IGNORED, IOU_THRESHOLDS, Overlaps, find_overlaps, match
from rtdetrv4.evaluation.mistakes import KINDS, find_mistakes, lost_precision
from rtdetrv4.evaluation.operating_curves import (
    CONFIDENCES,
    OperatingCurves,
    best_confidence,
    confusion_matrix,
    operating_curves,
    operating_point,
)
from rtdetrv4.types import ClassMap

SIZES: dict[str, tuple[float, float]] = {"small": (0, 32**2), "medium": (32**2, 96**2), "large": (96**2, math.inf)}
"""The areas in px² of COCO's size classes; a box on a border belongs to both."""
FALLBACK_CONFIDENCE = 0.5
"""The threshold of the confusion matrix where none is best."""
_STEP = 10
_DECIMALS = 5


class ClassResult(NamedTuple):
    """One class; None where a number is undefined."""

    name: str
    num_boxes: int
    num_images: int
    """Images with a box of the class."""
    ap: float
    ap50: float
    confidence: float | None
    """The threshold with the best F1, at which precision, recall and F1 are."""
    precision: float | None
    recall: float | None
    f1: float | None


class SizeResult(NamedTuple):
    """The objects of one size."""

    name: str
    num_boxes: int
    ap: float


class GroupResult(NamedTuple):
    """The images with a number of objects from `low` to `high`."""

    low: int
    high: int
    num_images: int
    ap: float
    """AP over these images alone, over the classes that they show."""


class Loss(NamedTuple):
    """What one kind of mistake costs."""

    kind: str
    """One of `mistakes.KINDS`, or "false_positives" and "false_negatives" for all of either sort."""
    ap_lost: float
    """The AP50 that would be won if these mistakes, and only these, were undone."""
    num: int
    """Mistakes at the best confidence threshold; AP counts less confident ones as well."""


class Analysis(NamedTuple):
    """What `analyze` finds."""

    metrics: Metrics
    names: tuple[str, ...]
    by_class: tuple[ClassResult, ...]
    by_size: tuple[SizeResult, ...]
    by_objects: tuple[GroupResult, ...]
    """Images by their number of objects: 1, 2 to 3, 4 to 7, 8 to 15, …; those without objects are left out."""
    curves: OperatingCurves
    mean_precision_at_recall: np.ndarray
    """(101,), over the classes with boxes."""
    mean_f1: np.ndarray
    """(1001,)."""
    confidence: float | None
    """The threshold with the best mean F1; None if nothing is found at any."""
    thresholds: Mapping[str, float]
    """The best threshold of each class; for a class without one, `confidence`. Empty if that is None."""
    confusion: np.ndarray
    """(K+1)×(K+1), see `confusion_matrix`, at `confusion_confidence`."""
    confusion_confidence: float
    """`confidence`, or 0.5 if that is None."""
    lost: tuple[Loss, ...]
    calibration: Calibration
    galleries: Galleries

    def to_dict(self) -> dict[str, Any]:
        """Return everything, ready for `json.dumps`, with None instead of NaN; curves at every tenth confidence."""
        curves, names = self.curves, self.names
        return {
            "metrics": self.metrics.to_dict(),
            "by_class": _plain(self.by_class),
            "by_size": _plain(self.by_size),
            "by_objects": _plain(self.by_objects),
            "curves": {
                "recalls": _plain(RECALLS),
                "precision_at_recall": dict(zip(names, _plain(curves.precision_at_recall), strict=True)),
                "mean_precision_at_recall": _plain(self.mean_precision_at_recall),
                "confidences": _plain(CONFIDENCES[::_STEP]),
                "f1": dict(zip(names, _plain(curves.f1[:, ::_STEP]), strict=True)),
                "mean_f1": _plain(self.mean_f1[::_STEP]),
            },
            "confidence": self.confidence,
            "thresholds": dict(self.thresholds),
            "confusion": {
                "names": list(names),
                "counts": self.confusion.tolist(),
                "confidence": self.confusion_confidence,
            },
            "lost": _plain(self.lost),
            "calibration": _plain(self.calibration.bins),
            "ece": self.calibration.ece,
            "galleries": _plain(self.galleries),
        }


def analyze(
    records: Sequence[Record], detections: Sequence[ImageDetections], classes: ClassMap, metrics: Metrics
) -> Analysis:
    """Analyze the detections in a data set.

    Args:
        records: the ground truth of each image, as `CocoEvaluator.records`.
        detections: the detections in each image, in the same order, as `CocoEvaluator.detections`.
        classes: the K classes.
        metrics: what `CocoEvaluator.compute` returned for them.
    """
    names = classes.names
    overlaps = find_overlaps(records, detections)
    matches = match(overlaps, IOU_THRESHOLDS)
    at_half = matches[:, 0]
    counted = overlaps.within_limit()

    curves = operating_curves(overlaps, len(names))
    mean_f1 = mean_of_rows(curves.f1)
    confidence = best_confidence(mean_f1)
    points = [operating_point(curves, k) for k in range(len(names))]
    shown = FALLBACK_CONFIDENCE if confidence is None else confidence
    is_sure = overlaps.scores >= np.float32(shown)

    mistakes = find_mistakes(overlaps, at_half, counted)
    sure_mistakes = find_mistakes(overlaps, at_half, counted & is_sure)
    losses = lost_precision(overlaps, at_half, counted, mistakes, len(names))
    num_wrong = int((sure_mistakes.kinds >= 0).sum())
    num_unfound = int((~overlaps.is_crowd).sum() - (counted & is_sure & (at_half >= 0)).sum())
    is_scored = at_half != IGNORED
    return Analysis(
        metrics=metrics,
        names=names,
        by_class=tuple(
            ClassResult(
                name,
                int(curves.num_boxes[k]),
                len(np.unique(overlaps.true_images[(overlaps.true_labels == k) & ~overlaps.is_crowd])),
                metrics.per_class[name],
                metrics.per_class_ap50[name],
                *points[k],
            )
            for k, name in enumerate(names)
        ),
        by_size=_by_size(records, metrics),
        by_objects=_by_objects(overlaps, matches, counted, len(records), len(names)),
        curves=curves,
        mean_precision_at_recall=mean_of_rows(curves.precision_at_recall),
        mean_f1=mean_f1,
        confidence=confidence,
        thresholds={}
        if confidence is None
        else {
            name: confidence if point.confidence is None else point.confidence
            for name, point in zip(names, points, strict=True)
        },
        confusion=confusion_matrix(overlaps, len(names), shown),
        confusion_confidence=shown,
        lost=(
            *(Loss(kind, losses.by_kind[kind], sure_mistakes.count(kind)) for kind in KINDS),
            Loss("false_positives", losses.false_positives, num_wrong),
            Loss("false_negatives", losses.false_negatives, num_unfound),
        ),
        calibration=calibrate(overlaps.scores[is_scored], at_half[is_scored] >= 0),
        galleries=choose_examples(records, detections, names, overlaps, at_half, sure_mistakes, shown),
    )


def mean_of_rows(rows: np.ndarray) -> np.ndarray:
    """Return the mean over the classes that have boxes, or zeros if none has."""
    defined = rows[~np.isnan(rows).all(axis=1)]
    return defined.mean(axis=0) if len(defined) else np.zeros(rows.shape[1])


def _by_size(records: Sequence[Record], metrics: Metrics) -> tuple[SizeResult, ...]:
    areas = np.concatenate([record.areas[~record.is_crowd] for record in records])
    values = {"small": metrics.ap_small, "medium": metrics.ap_medium, "large": metrics.ap_large}
    return tuple(
        SizeResult(name, int(((areas >= low) & (areas <= high)).sum()), values[name])
        for name, (low, high) in SIZES.items()
    )


def _by_objects(
    overlaps: Overlaps, matches: np.ndarray, counted: np.ndarray, num_images: int, num_classes: int
) -> tuple[GroupResult, ...]:
    num_objects = np.bincount(overlaps.true_images[~overlaps.is_crowd], minlength=num_images)
    group_of = np.where(num_objects > 0, np.frexp(num_objects)[1] - 1, -1)  # the binary logarithm, rounded down
    by_score = np.argsort(overlaps.places)
    by_score = by_score[counted[by_score]]
    results = []
    for group in np.unique(group_of[group_of >= 0]).tolist():
        rows = by_score[group_of[overlaps.images[by_score]] == group]
        boxes = overlaps.true_labels[~overlaps.is_crowd & (group_of[overlaps.true_images] == group)]
        ap = average_precision(
            overlaps.labels[rows],
            matches[rows] >= 0,
            matches[rows] == IGNORED,
            np.bincount(boxes, minlength=num_classes),
        )
        num = int((group_of == group).sum())
        results.append(GroupResult(2**group, 2 ** (group + 1) - 1, num, mean_defined(ap)))
    return tuple(results)


def _plain(value: Any) -> Any:
    """The value for JSON: NamedTuples as dicts, arrays as lists, NaN as None, other floats rounded."""
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return {name: _plain(item) for name, item in value._asdict().items()}  # pyright: ignore[reportAttributeAccessIssue]
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return None if math.isnan(value) else round(value, _DECIMALS)
    return value
