"""The mistakes of a detector by kind, and the average precision that each kind costs.

References:
    Bolya et al., TIDE: A General Toolbox for Identifying Object Detection Errors, ECCV 2020, section 2.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np

from rtdetrv4.evaluation.average_precision import average_precision, mean_defined
from rtdetrv4.evaluation.matching import IOU_THRESHOLD, UNMATCHED, Overlaps

Kind = Literal["classification", "localization", "both", "duplicate", "background", "missed"]
KINDS: tuple[Kind, ...] = ("classification", "localization", "both", "duplicate", "background", "missed")
NO_MISTAKE = -1


class Mistakes(NamedTuple):
    """The kind of every mistake.

    With s, the largest overlap of a wrong detection with a box of its class, and o, with one of another class, it is
    the first of these that holds:

    - localization: 0.1 ≤ s < 0.5;
    - classification: o ≥ 0.5;
    - duplicate: s ≥ 0.5, where a more confident detection found the box;
    - background: neither is 0.1;
    - both (class and place are wrong): what remains.

    A box is missed if no detection found it, and none would with its class or its place corrected.
    """

    kinds: np.ndarray
    """(N,) int8, an index into `KINDS` for every wrong detection, -1 for others."""
    boxes: np.ndarray
    """(N,) int64, the box that a detection with a wrong class or place was meant for, -1 for others."""
    is_missed: np.ndarray
    """(M,) bool."""

    def count(self, kind: Kind) -> int:
        """How many mistakes are of a kind."""
        return int(self.is_missed.sum() if kind == "missed" else (self.kinds == KINDS.index(kind)).sum())


def find_mistakes(overlaps: Overlaps, matches: np.ndarray, counted: np.ndarray) -> Mistakes:
    """Find the kind of every mistake.

    Args:
        overlaps: the N detections and their overlaps with M boxes.
        matches: (N,), from `match` at an IoU of 0.5.
        counted: (N,) bool, the detections to look at; a more confident one may not be left out for a less confident.
    """
    is_object = ~overlaps.is_crowd[overlaps.truth]
    own, own_box = _largest(overlaps, is_object & overlaps.is_own)
    other, other_box = _largest(overlaps, is_object & ~overlaps.is_own)
    conditions: dict[Kind, np.ndarray] = {
        "localization": (own > 0) & (own < IOU_THRESHOLD),
        "classification": other >= IOU_THRESHOLD,
        "duplicate": own >= IOU_THRESHOLD,
        "background": (own == 0) & (other == 0),
    }
    is_wrong = counted & (matches == UNMATCHED)
    first = np.select(list(conditions.values()), [KINDS.index(kind) for kind in conditions], KINDS.index("both"))
    kinds = np.where(is_wrong, first, NO_MISTAKE).astype(np.int8)
    boxes = np.full(len(kinds), -1, dtype=np.int64)
    for kind, box in (("localization", own_box), ("classification", other_box)):
        chosen = kinds == KINDS.index(kind)
        boxes[chosen] = box[chosen]
    is_missed = ~overlaps.is_crowd
    is_missed[matches[counted & (matches >= 0)]] = False
    is_missed[boxes[boxes >= 0]] = False
    return Mistakes(kinds, boxes, is_missed)


class Losses(NamedTuple):
    """AP50 of a detector, and what it would gain if one kind of mistake were undone and the others stayed."""

    ap50: float
    """NaN if the ground truth has no boxes."""
    by_kind: dict[Kind, float]
    false_positives: float
    """The gain without any wrong detection."""
    false_negatives: float
    """The gain if boxes that no detection found did not count."""


def lost_precision(
    overlaps: Overlaps, matches: np.ndarray, counted: np.ndarray, mistakes: Mistakes, num_classes: int
) -> Losses:
    """Compute what each kind of mistake costs in AP50.

    Detections of a wrong class or place get those of the box they were meant for; if several are then on one box, the
    most confident stays, the others go. Other wrong detections are removed. Missed boxes no longer count; a class that
    has no other boxes is left out of the mean, and if there are no other boxes at all, everything is gained.

    Args:
        overlaps: the N detections and the M boxes.
        matches: (N,), from `match` at an IoU of 0.5.
        counted: (N,) bool, the detections that count for AP.
        mistakes: those of `find_mistakes` for the same arguments.
        num_classes: K.
    """
    counted = counted & (matches >= UNMATCHED)
    num_boxes = overlaps.num_boxes(num_classes)
    right = counted & (matches >= 0)
    order = np.argsort(overlaps.places)

    def ap50(labels: np.ndarray, right: np.ndarray, counted: np.ndarray, num_boxes: np.ndarray) -> float:
        rows = order[counted[order]]
        nothing = np.zeros((len(rows), 1), dtype=bool)
        return mean_defined(average_precision(labels[rows], right[rows][:, None], nothing, num_boxes))

    now = ap50(overlaps.labels, right, counted, num_boxes)

    def gain(after: float) -> float:
        return max((1.0 if np.isnan(after) else after) - now, 0.0) if num_boxes.any() else float("nan")

    gains: dict[Kind, float] = {}
    for kind in KINDS[:-1]:
        wrong = mistakes.kinds == KINDS.index(kind)
        labels, now_right = overlaps.labels, right
        if kind in ("classification", "localization"):
            claimed = np.where(right, matches, mistakes.boxes)
            now_right = _most_confident(overlaps, np.flatnonzero(right | wrong), claimed)
            labels = labels.copy()
            labels[now_right] = overlaps.true_labels[claimed[now_right]]
        stays = (counted & ~right & ~wrong) | now_right
        gains[kind] = gain(ap50(labels, now_right, stays, num_boxes))
    missed = np.bincount(overlaps.true_labels[mistakes.is_missed], minlength=num_classes)
    gains["missed"] = gain(ap50(overlaps.labels, right, counted, num_boxes - missed))
    found = np.bincount(overlaps.labels[right], minlength=num_classes)
    return Losses(
        now,
        gains,
        false_positives=gain(ap50(overlaps.labels, right, right, num_boxes)),
        false_negatives=gain(ap50(overlaps.labels, right, counted, found)),
    )


def _largest(overlaps: Overlaps, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(N,) the largest overlap of each detection among some pairs, 0 without any, and (N,) the box it is with."""
    found, truth, overlap = overlaps.found[chosen], overlaps.truth[chosen], overlaps.overlap[chosen]
    order = np.lexsort((overlap, found))
    largest, box = np.zeros(len(overlaps.scores)), np.full(len(overlaps.scores), -1, dtype=np.int64)
    largest[found[order]] = overlap[order]  # of repeated indices the last counts
    box[found[order]] = truth[order]
    return largest, box


def _most_confident(overlaps: Overlaps, candidates: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """(N,) bool: among the candidates, the most confident for every box."""
    order = candidates[np.lexsort((overlaps.places[candidates], boxes[candidates]))]
    is_first = np.diff(boxes[order], prepend=-1) != 0
    result = np.zeros(len(overlaps.scores), dtype=bool)
    result[order[is_first]] = True
    return result
