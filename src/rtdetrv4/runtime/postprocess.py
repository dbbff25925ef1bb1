"""From a network's raw outputs to a list of predictions, in numpy."""

from __future__ import annotations

import numpy as np

NUM_TOP = 300
"""Predictions per image that post-processing keeps; as many as there are queries, where they are more."""


def postprocess(
    logits: np.ndarray, boxes: np.ndarray, num_top: int = NUM_TOP
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the `num_top` best (query, class) pairs of each image, by descending score; a query may yield several.

    Args:
        logits: B×Q×K.
        boxes: B×Q×4, cxcywh in [0, 1].
        num_top: N; capped at Q·K.

    Returns:
        Scores B×N in [0, 1], labels B×N, boxes B×N×4 xyxy in [0, 1].
    """
    num_classes = logits.shape[-1]
    flat = logits.astype(np.float32).reshape(len(logits), -1)
    num_top = min(num_top, flat.shape[1])
    best = np.argpartition(-flat, num_top - 1, axis=1)[:, :num_top]
    order = np.argsort(-np.take_along_axis(flat, best, axis=1), axis=1, kind="stable")
    index = np.take_along_axis(best, order, axis=1)
    with np.errstate(invalid="ignore"):  # NaN of damaged weights
        scores = np.exp(-np.logaddexp(0, -np.take_along_axis(flat, index, axis=1)))  # the sigmoid, without overflow
    center, half = boxes[..., :2].astype(np.float32), boxes[..., 2:].astype(np.float32) / 2
    corners = np.concatenate([center - half, center + half], axis=-1)
    return scores, index % num_classes, np.take_along_axis(corners, index[..., None] // num_classes, axis=1)
