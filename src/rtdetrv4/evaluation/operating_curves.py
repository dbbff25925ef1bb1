"""Precision and recall over the confidence threshold, and the confusion matrix, at one IoU threshold."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from rtdetrv4.evaluation.average_precision import RECALLS, precision_at_recall
from rtdetrv4.evaluation.matching import IGNORED, UNMATCHED, Overlaps, match

CONFIDENCES = np.linspace(0, 1, 1001)


class OperatingCurves(NamedTuple):
    """One row per class; NaN where undefined, for lack of detections that confident or of boxes of the class."""

    precision: np.ndarray
    """K×1001, among the detections with a confidence of at least `CONFIDENCES[i]`."""
    recall: np.ndarray
    """K×1001."""
    f1: np.ndarray
    """K×1001, the harmonic mean of precision and recall."""
    precision_at_recall: np.ndarray
    """K×101, the best precision at a recall of at least `RECALLS[i]`; its mean is the AP at IoU 0.5."""
    num_boxes: np.ndarray
    """(K,) int64, the number of ground-truth boxes, crowd regions excluded."""


class OperatingPoint(NamedTuple):
    """A class at the confidence threshold where its F1 is best; None where there is none."""

    confidence: float | None
    precision: float | None
    recall: float | None
    f1: float | None


def operating_curves(overlaps: Overlaps, num_classes: int) -> OperatingCurves:
    """Compute precision, recall and F1 of every class at every confidence threshold.

    Args:
        overlaps: the detections, and the boxes they overlap.
        num_classes: K.
    """
    scores, labels = overlaps.scores, overlaps.labels
    matches = match(overlaps)[:, 0]
    num_boxes = overlaps.num_boxes(num_classes)

    shape = (num_classes, len(CONFIDENCES))
    precision, recall, f1 = np.full(shape, np.nan), np.full(shape, np.nan), np.full(shape, np.nan)
    rows = np.full((num_classes, len(RECALLS)), np.nan)
    for k in np.flatnonzero(num_boxes):
        counted = (labels == k) & (matches != IGNORED)
        order = np.argsort(-scores[counted], kind="stable")
        descending, is_right = scores[counted][order], matches[counted][order] != UNMATCHED
        num_right = np.concatenate([[0], np.cumsum(is_right)])  # among the first n
        num_found = np.searchsorted(-descending, -CONFIDENCES.astype(scores.dtype), side="right")
        right = num_right[num_found]
        precision[k] = np.divide(right, num_found, out=precision[k], where=num_found > 0)
        recall[k] = right / num_boxes[k]
        f1[k] = 2 * right / (num_found + num_boxes[k])
        rows[k] = precision_at_recall(is_right, num_boxes[k])
    return OperatingCurves(precision, recall, f1, rows, num_boxes)


def operating_point(curves: OperatingCurves, k: int) -> OperatingPoint:
    """The point of class `k` where its F1 is best."""
    confidence = best_confidence(curves.f1[k])
    if confidence is None:
        return OperatingPoint(None, None, None, None)
    at = round(confidence * (len(CONFIDENCES) - 1))
    return OperatingPoint(confidence, *(float(rows[k, at]) for rows in (curves.precision, curves.recall, curves.f1)))


def best_confidence(f1: np.ndarray) -> float | None:
    """Return the confidence threshold with the highest F1, or None if F1 is zero everywhere.

    If a range of thresholds has the highest F1, return its middle, because scores shift a little on other images.

    Args:
        f1: (1001,), the F1 at each of `CONFIDENCES`.
    """
    if not np.nan_to_num(f1).any():
        return None
    at_maximum = np.flatnonzero(f1 == np.nanmax(f1))
    plateau = at_maximum[at_maximum - at_maximum[0] == np.arange(len(at_maximum))]
    return round(float(CONFIDENCES[plateau[len(plateau) // 2]]), 3)


def confusion_matrix(overlaps: Overlaps, num_classes: int, confidence: float) -> np.ndarray:
    """Count how often objects of each class were detected as each class.

    Boxes and detections are matched regardless of class, the most confident detection first.

    Args:
        overlaps: the detections, and the boxes they overlap.
        num_classes: K.
        confidence: detections below are left out.

    Returns:
        (K+1)×(K+1) counts: row = true class, column = predicted class. The last column counts missed boxes, the last
        row detections without a box.
    """
    counts = np.zeros((num_classes + 1, num_classes + 1), dtype=np.int64)
    matches, is_sure = match(overlaps, same_class=False)[:, 0], overlaps.scores >= confidence
    hit = is_sure & (matches >= 0)
    is_missed = ~overlaps.is_crowd
    is_missed[matches[hit]] = False
    np.add.at(counts, (overlaps.true_labels[matches[hit]], overlaps.labels[hit]), 1)
    wrong = overlaps.labels[is_sure & (matches == UNMATCHED)]
    counts[num_classes, :num_classes] = np.bincount(wrong, minlength=num_classes)
    counts[:num_classes, num_classes] = np.bincount(overlaps.true_labels[is_missed], minlength=num_classes)
    return counts
