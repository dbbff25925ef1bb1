"""Which detections overlap which boxes, and which find one: over a whole data set at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from rtdetrv4.data.records import Record
from rtdetrv4.evaluation.coco_evaluator import ImageDetections

IOU_THRESHOLD = 0.5
IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
"""Those that COCO's AP is the mean of."""
MIN_OVERLAP = 0.1
"""Below it, a detection and a box have nothing to do with each other."""
MAX_DETECTIONS = 100
"""How many detections per image and class count for COCO's AP."""
UNMATCHED, IGNORED = -1, -2


class Overlaps(NamedTuple):
    """All N detections and M boxes of a data set, and the P pairs in one image that overlap by `MIN_OVERLAP` or more.

    The overlap is the intersection over union or, for crowd regions, over the area of the detection.
    """

    scores: np.ndarray
    """(N,) float32, image by image."""
    labels: np.ndarray
    """(N,) int64 in [0, K)."""
    images: np.ndarray
    """(N,) int64, the image of each detection."""
    places: np.ndarray
    """(N,) int64, the place of each detection by descending score; equal scores keep the order of the images."""
    true_labels: np.ndarray
    """(M,) int64 in [0, K)."""
    true_images: np.ndarray
    """(M,) int64."""
    is_crowd: np.ndarray
    """(M,) bool."""
    found: np.ndarray
    """(P,) int64, the detection of each pair, ascending."""
    truth: np.ndarray
    """(P,) int64, the box of each pair."""
    overlap: np.ndarray
    """(P,) float64 in [0, 1]."""

    @property
    def is_own(self) -> np.ndarray:
        """(P,) bool: the detection has the class of the box."""
        return self.labels[self.found] == self.true_labels[self.truth]

    def num_boxes(self, num_classes: int) -> np.ndarray:
        """(K,) int64, the boxes of each class, crowd regions excluded."""
        return np.bincount(self.true_labels[~self.is_crowd], minlength=num_classes)

    def within_limit(self, limit: int = MAX_DETECTIONS) -> np.ndarray:
        """(N,) bool: the detection is among the `limit` best of its class in its image."""
        order = np.lexsort((self.places, self.labels, self.images))
        labels, images = self.labels[order], self.images[order]
        counts = _positions_in_runs((labels[1:] != labels[:-1]) | (images[1:] != images[:-1]))
        kept = np.empty(len(order), dtype=bool)
        kept[order] = counts < limit
        return kept


def find_overlaps(records: Sequence[Record], detections: Sequence[ImageDetections]) -> Overlaps:
    """Compare detections with boxes, image by image.

    Args:
        records: the ground truth of each image.
        detections: the detections in each image, in the same order.
    """
    num_found = [len(each.scores) for each in detections]
    num_true = [len(each.labels) for each in records]
    founds, truths, overlaps = [], [], []
    first_found = first_true = 0
    for found, truth in zip(detections, records, strict=True):
        if len(found.scores) and len(truth.labels):
            overlap = box_overlaps(found.boxes_xyxy_px, truth.boxes_xyxy_px, truth.is_crowd)
            rows, columns = np.nonzero(overlap >= MIN_OVERLAP)
            founds.append(rows + first_found)
            truths.append(columns + first_true)
            overlaps.append(overlap[rows, columns])
        first_found += len(found.scores)
        first_true += len(truth.labels)
    scores = _joined([each.scores for each in detections], np.float32)
    places = np.empty(len(scores), dtype=np.int64)
    places[np.argsort(-scores, kind="stable")] = np.arange(len(scores))
    return Overlaps(
        scores=scores,
        labels=_joined([each.labels for each in detections], np.int64),
        images=np.repeat(np.arange(len(detections)), num_found),
        places=places,
        true_labels=_joined([each.labels for each in records], np.int64),
        true_images=np.repeat(np.arange(len(records)), num_true),
        is_crowd=_joined([each.is_crowd for each in records], np.bool_),
        found=_joined(founds, np.int64),
        truth=_joined(truths, np.int64),
        overlap=_joined(overlaps, np.float64),
    )


def match(
    overlaps: Overlaps, thresholds: Sequence[float] | np.ndarray = (IOU_THRESHOLD,), *, same_class: bool = True
) -> np.ndarray:
    """Match detections to boxes as COCO does: by descending score, each to the free box it overlaps most.

    Images and classes do not compete, so the best detections of all of them take their turn at once, then the second
    best, and so on.

    Args:
        overlaps: the N detections and their overlaps with boxes.
        thresholds: T minimum overlaps, at least `MIN_OVERLAP`; every one is matched for itself.
        same_class: match detections only to boxes of their own class.

    Returns:
        (N, T) int32: the index of the box, -1 for no box, or -2 for one in a crowd region of its class, to ignore.
    """
    limits = np.asarray(thresholds, dtype=np.float64)
    matches = np.full((len(overlaps.scores), len(limits)), UNMATCHED, dtype=np.int32)
    is_own, is_crowd = overlaps.is_own, overlaps.is_crowd[overlaps.truth]
    possible = ~is_crowd & (overlaps.overlap >= limits.min()) & (is_own | (not same_class))
    found, truth, overlap = overlaps.found[possible], overlaps.truth[possible], overlaps.overlap[possible]

    turns = _turns(overlaps, np.unique(found), same_class)[found]
    order = np.lexsort((truth, overlap, found, turns))
    found, truth, overlap, turns = found[order], truth[order], overlap[order], turns[order]
    is_taken = np.zeros((len(overlaps.true_labels), len(limits)), dtype=bool)
    bounds = [*np.flatnonzero(np.diff(turns, prepend=-1)).tolist(), len(turns)]
    for start, end in zip(bounds[:-1], bounds[1:], strict=True):
        who, what = found[start:end], truth[start:end]
        is_free = ~is_taken[what] & (overlap[start:end, None] >= limits)
        firsts = np.flatnonzero(np.diff(who, prepend=-1))
        # The last free pair of each detection overlaps most; of equal ones COCO takes the last, too.
        best = np.maximum.reduceat(np.where(is_free, np.arange(len(who))[:, None], -1), firsts, axis=0)
        row, column = np.nonzero(best >= 0)
        box = what[best[row, column]]
        matches[who[firsts][row], column] = box
        is_taken[box, column] = True

    for column, limit in enumerate(limits):
        in_crowd = overlaps.found[is_crowd & is_own & (overlaps.overlap >= limit)]
        matches[in_crowd[matches[in_crowd, column] == UNMATCHED], column] = IGNORED
    return matches


def box_overlaps(boxes: np.ndarray, truth: np.ndarray, is_crowd: np.ndarray) -> np.ndarray:
    """Return n×m: intersection over union or, for crowd regions, over the area of the detection."""
    boxes, truth = boxes.astype(np.float64), truth.astype(np.float64)
    top_left = np.maximum(boxes[:, None, :2], truth[:, :2])
    bottom_right = np.minimum(boxes[:, None, 2:], truth[:, 2:])
    intersection = (bottom_right - top_left).clip(min=0).prod(axis=-1)
    area, truth_area = (boxes[:, 2:] - boxes[:, :2]).prod(axis=-1), (truth[:, 2:] - truth[:, :2]).prod(axis=-1)
    reference = area[:, None] + np.where(is_crowd, 0, truth_area - intersection)
    return np.divide(intersection, reference, out=np.zeros_like(intersection), where=reference > 0)


def _turns(overlaps: Overlaps, candidates: np.ndarray, same_class: bool) -> np.ndarray:
    """(N,) the place of each candidate by descending score, among those of its image and, perhaps, class."""
    images, labels = overlaps.images[candidates], overlaps.labels[candidates] * same_class
    order = np.lexsort((overlaps.places[candidates], labels, images))
    images, labels = images[order], labels[order]
    turns = np.zeros(len(overlaps.scores), dtype=np.int64)
    turns[candidates[order]] = _positions_in_runs((images[1:] != images[:-1]) | (labels[1:] != labels[:-1]))
    return turns


def _positions_in_runs(begins: np.ndarray) -> np.ndarray:
    """(n,) the positions 0, 1, 2, … within runs; `begins`, (n - 1,), says which but the first begin a run."""
    index = np.arange(len(begins) + 1)
    starts = np.where(np.concatenate([[True], begins]), index, 0)
    return index - np.maximum.accumulate(starts)


def _joined(parts: Sequence[np.ndarray], dtype: type) -> np.ndarray:
    return np.concatenate([np.zeros(0, dtype), *parts]).astype(dtype, copy=False)
