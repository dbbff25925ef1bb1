"""Whether confidences are right: of the detections of confidence 0.8, eight in ten should have found an object."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

MIN_CONFIDENCE = 0.05
"""The many less confident detections would decide the mean alone."""
NUM_BINS = 10


class CalibrationBin(NamedTuple):
    """The detections of one range of confidences."""

    low: float
    high: float
    """Not included, except in the last bin."""
    num: int
    mean_confidence: float | None
    """None in an empty bin."""
    precision: float | None
    """The share that found an object; None in an empty bin."""


class Calibration(NamedTuple):
    """Confidence against precision, bin by bin."""

    bins: tuple[CalibrationBin, ...]
    ece: float | None
    """The expected calibration error: the mean gap between confidence and precision in a bin, weighted by detections;
    in [0, 1]. None without detections."""


def calibrate(scores: np.ndarray, is_right: np.ndarray) -> Calibration:
    """Compare confidence with precision in ten bins of [0, 1], above `MIN_CONFIDENCE`.

    Args:
        scores: (n,) in [0, 1].
        is_right: (n,) bool, whether the detection found an object.

    References:
        Naeini et al., Obtaining Well Calibrated Probabilities Using Bayesian Binning, AAAI 2015; Küppers et al.,
        Multivariate Confidence Calibration for Object Detection, CVPR Workshops 2020, for precision in detection.
    """
    edges = np.linspace(0, 1, NUM_BINS + 1)
    edges[0] = MIN_CONFIDENCE
    scores, is_right = scores[scores >= MIN_CONFIDENCE], is_right[scores >= MIN_CONFIDENCE]
    index = np.clip(np.searchsorted(edges.astype(scores.dtype), scores, side="right") - 1, 0, NUM_BINS - 1)
    num = np.bincount(index, minlength=NUM_BINS)
    confidence = np.bincount(index, scores, NUM_BINS) / np.maximum(num, 1)
    precision = np.bincount(index, is_right, NUM_BINS) / np.maximum(num, 1)
    bins = tuple(
        CalibrationBin(
            low=round(float(edges[i]), 2),
            high=round(float(edges[i + 1]), 2),
            num=int(num[i]),
            mean_confidence=float(confidence[i]) if num[i] else None,
            precision=float(precision[i]) if num[i] else None,
        )
        for i in range(NUM_BINS)
    )
    ece = float((num * np.abs(precision - confidence)).sum() / num.sum()) if num.sum() else None
    return Calibration(bins, ece)
