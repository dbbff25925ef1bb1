"""Precision and recall over the confidence threshold, and the confusion matrix, at one IoU threshold."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from rtdetrv4.data.records import Record
from rtdetrv4.evaluation.coco_evaluator import ImageDetections

IOU_THRESHOLD = 0.5
CONFIDENCES = np.linspace(0, 1, 1001)
RECALLS = np.linspace(0, 1, 101)

_UNMATCHED, _IGNORED = -1, -2


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


def operating_curves(
    records: Sequence[Record], detections: Sequence[ImageDetections], num_classes: int
) -> OperatingCurves:
    """Compute precision, recall and F1 of every class at every confidence threshold.

    Args:
        records: the ground truth of each image.
        detections: the detections in each image, in the same order.
        num_classes: K.
    """
    matched = [match(found, truth, same_class=True) for found, truth in zip(detections, records, strict=True)]
    match_of = np.concatenate(matched)
    scores = np.concatenate([found.scores for found in detections])
    labels = np.concatenate([found.labels for found in detections])
    true_labels = np.concatenate([truth.labels[~truth.is_crowd] for truth in records])
    num_boxes = np.bincount(true_labels, minlength=num_classes)

    shape = (num_classes, len(CONFIDENCES))
    precision, recall, f1 = np.full(shape, np.nan), np.full(shape, np.nan), np.full(shape, np.nan)
    precision_at_recall = np.full((num_classes, len(RECALLS)), np.nan)
    for k in np.flatnonzero(num_boxes):
        counted = (labels == k) & (match_of != _IGNORED)
        order = np.argsort(-scores[counted], kind="stable")
        descending = scores[counted][order]
        num_right = np.concatenate([[0], np.cumsum(match_of[counted][order] != _UNMATCHED)])  # among the first n
        num_found = np.searchsorted(-descending, -CONFIDENCES.astype(scores.dtype), side="right")
        right = num_right[num_found]
        precision[k] = np.divide(right, num_found, out=precision[k], where=num_found > 0)
        recall[k] = right / num_boxes[k]
        f1[k] = 2 * right / (num_found + num_boxes[k])

        best_from_here = np.maximum.accumulate((num_right[1:] / np.arange(1, len(num_right)))[::-1])[::-1]
        first = np.searchsorted(num_right[1:] / num_boxes[k], RECALLS, side="left")
        precision_at_recall[k] = np.append(best_from_here, 0)[first]
    return OperatingCurves(precision, recall, f1, precision_at_recall, num_boxes)


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


def confusion_matrix(
    records: Sequence[Record], detections: Sequence[ImageDetections], num_classes: int, confidence: float
) -> np.ndarray:
    """Count how often objects of each class were detected as each class.

    Boxes and detections are matched regardless of class, the most confident detection first.

    Returns:
        (K+1)×(K+1) counts: row = true class, column = predicted class. The last column counts missed boxes, the last
        row detections without a box.
    """
    counts = np.zeros((num_classes + 1, num_classes + 1), dtype=np.int64)
    for found, truth in zip(detections, records, strict=True):
        sure = found.scores >= confidence
        found = ImageDetections(*(array[sure] for array in found))
        match_of = match(found, truth, same_class=False)
        hit = match_of >= 0
        missed = ~truth.is_crowd
        missed[match_of[hit]] = False
        np.add.at(counts, (truth.labels[match_of[hit]], found.labels[hit]), 1)
        counts[num_classes, :num_classes] += np.bincount(found.labels[match_of == _UNMATCHED], minlength=num_classes)
        counts[:num_classes, num_classes] += np.bincount(truth.labels[missed], minlength=num_classes)
    return counts


def match(found: ImageDetections, truth: Record, *, same_class: bool) -> np.ndarray:
    """Match detections to boxes as COCO does: by descending score, each to the free box it overlaps most.

    Args:
        found: the n detections in an image.
        truth: its m boxes.
        same_class: match detections only to boxes of their own class.

    Returns:
        (n,) int64: the index of the box, -1 for no box, or -2 for one in a crowd region of its class, to ignore.
    """
    matches = np.full(len(found.scores), _UNMATCHED)
    is_own = found.labels[:, None] == truth.labels
    overlap = overlaps(found.boxes_xyxy_px, truth.boxes_xyxy_px, truth.is_crowd)
    matches[(overlap >= IOU_THRESHOLD)[:, truth.is_crowd].any(axis=1, where=is_own[:, truth.is_crowd])] = _IGNORED

    iou = np.where(truth.is_crowd | ~(is_own | (not same_class)), 0, overlap)
    candidates = np.flatnonzero((iou >= IOU_THRESHOLD).any(axis=1))  # few, as most detections are far from any box
    for i in candidates[np.argsort(-found.scores[candidates], kind="stable")]:
        box = iou[i].argmax()
        if iou[i, box] >= IOU_THRESHOLD:
            matches[i] = box
            iou[:, box] = 0
    return matches


def overlaps(boxes: np.ndarray, truth: np.ndarray, is_crowd: np.ndarray) -> np.ndarray:
    """Return n×m: intersection over union or, for crowd regions, over the area of the detection."""
    boxes, truth = boxes.astype(np.float64), truth.astype(np.float64)
    top_left = np.maximum(boxes[:, None, :2], truth[:, :2])
    bottom_right = np.minimum(boxes[:, None, 2:], truth[:, 2:])
    intersection = (bottom_right - top_left).clip(min=0).prod(axis=-1)
    area, truth_area = (boxes[:, 2:] - boxes[:, :2]).prod(axis=-1), (truth[:, 2:] - truth[:, :2]).prod(axis=-1)
    reference = area[:, None] + np.where(is_crowd, 0, truth_area - intersection)
    return np.divide(intersection, reference, out=np.zeros_like(intersection), where=reference > 0)
