"""Average precision over recall, as COCO defines it."""

from __future__ import annotations

import numpy as np

RECALLS = np.linspace(0, 1, 101)


def precision_at_recall(is_right: np.ndarray, num_boxes: int) -> np.ndarray:
    """The best precision at a recall of at least each of `RECALLS`; its mean is the average precision.

    Args:
        is_right: (n,) bool, whether each detection of a class found a box, by descending score.
        num_boxes: the boxes of the class, at least 1.

    Returns:
        (101,) float64 in [0, 1].
    """
    right = np.flatnonzero(is_right)
    num_right = np.arange(1, len(right) + 1)
    best_from_here = np.maximum.accumulate((num_right / (right + 1))[::-1])[::-1]
    first = np.searchsorted(num_right / num_boxes, RECALLS, side="left")
    return np.append(best_from_here, 0)[first]


def average_precision(
    labels: np.ndarray, is_right: np.ndarray, is_ignored: np.ndarray, num_boxes: np.ndarray
) -> np.ndarray:
    """The average precision of every class at T overlap thresholds.

    Args:
        labels: (n,) in [0, K), of all detections by descending score.
        is_right: (n, T) bool, whether a detection found a box.
        is_ignored: (n, T) bool, whether it counts neither as right nor as wrong.
        num_boxes: (K,), the boxes of each class.

    Returns:
        (K, T) float64 in [0, 1]; NaN for classes without boxes.
    """
    result = np.full((len(num_boxes), is_right.shape[1]), np.nan)
    by_class = np.argsort(labels, kind="stable")
    bounds = np.searchsorted(labels[by_class], np.arange(len(num_boxes) + 1))
    for k in np.flatnonzero(num_boxes):
        rows = by_class[bounds[k] : bounds[k + 1]]
        right, counted = is_right[rows], ~is_ignored[rows]
        for column in range(is_right.shape[1]):
            row = precision_at_recall(right[counted[:, column], column], num_boxes[k])
            result[k, column] = row.mean()
    return result


def mean_defined(values: np.ndarray) -> float:
    """The mean of the values that are not NaN, or NaN if there is none."""
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if defined.size else float("nan")
