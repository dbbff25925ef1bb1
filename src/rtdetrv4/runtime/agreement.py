"""How closely two runtimes agree on the detections in an image.

Two runtimes round differently, and a detector sorts twice: to select queries, and to list the best detections. Nearly
tied entries may swap places without anything being wrong. So detections are first compared position by position, and
those that differ are then looked for elsewhere in the list; any that is not found is an error.

In another precision, all numbers differ a little. There it counts whether the same objects are found.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from rtdetrv4.runtime.export_metadata import ExportMetadata
from rtdetrv4.runtime.postprocess import NUM_TOP, postprocess

MAX_BOX_PX = 0.5
MAX_SCORE = 1e-3
SAME_BOX_IOU = 0.95
SAME_SCORE = 0.1
"""Scores of one object in two precisions differ less than this."""
CONFIDENT = 0.25
"""The score from which `predict` returns a detection by default."""
NUM_BEST = 20
MOST_COMPARED = 100
"""Detections of an image that are looked for in another precision."""


class Listed(NamedTuple):
    """The output for one image: detections, or raw queries."""

    scores: np.ndarray
    """N×1, or N×K for queries."""
    labels: np.ndarray
    """(N,); all 0 for queries."""
    boxes_xyxy_px: np.ndarray
    """N×4."""


class OutputGap(NamedTuple):
    """The differences between two outputs for the same image."""

    max_box_px: float
    max_score: float
    num_moved: int
    num_lost: int
    """Entries without a counterpart in the other list that no tie at its end explains."""


class Matched(NamedTuple):
    """How many confident detections of either of two lists are in the other as well."""

    num: int
    num_confident: int
    max_box_px: float = 0.0
    """Largest difference of a coordinate between two that match."""
    max_score: float = 0.0

    @property
    def share(self) -> float | None:
        """From 0 to 1; None if there are no confident detections."""
        return self.num / self.num_confident if self.num_confident else None


def list_outputs(outputs: Mapping[str, np.ndarray], metadata: ExportMetadata) -> list[Listed]:
    """Split the outputs of a batch by image, as they are: raw queries remain queries."""
    boxes = outputs["boxes"]
    if metadata.outputs == "raw":
        with np.errstate(invalid="ignore"):  # NaN
            scores = np.exp(-np.logaddexp(0, -outputs["logits"]))
        labels = np.zeros(boxes.shape[:2], dtype=np.int64)
        center, half = boxes[..., :2], boxes[..., 2:] / 2
        boxes = np.concatenate([center - half, center + half], axis=-1)
    else:
        scores, labels = outputs["scores"][..., None], outputs["labels"]
    scale = np.array(metadata.image_size[::-1] * 2, dtype=np.float32)
    return [Listed(*each) for each in zip(scores, labels, boxes * scale, strict=True)]


def list_detections(outputs: Mapping[str, np.ndarray], metadata: ExportMetadata) -> list[Listed]:
    """Split the outputs of a batch by image, as detections by descending score."""
    if metadata.outputs == "raw":
        logits, boxes = outputs["logits"], outputs["boxes"]
        scores, labels, boxes = postprocess(logits, boxes, max(NUM_TOP, logits.shape[1]))
        outputs = {"scores": scores, "labels": labels, "boxes": boxes}
        metadata = metadata._replace(outputs="postprocessed")
    return list_outputs(outputs, metadata)


def match(expected: Sequence[Listed], actual: Sequence[Listed]) -> Matched:
    """Look for the confident detections of each image in the other list: same class, IoU ≥ 0.95, about the same score.

    In an image without any of them, the best 20 that are expected are looked for: noise, or a model that is hardly
    trained.
    """
    found = total = 0
    box_px = score = 0.0
    for ours, theirs in zip(expected, actual, strict=True):
        for one, other, fewest in ((ours, theirs, NUM_BEST), (theirs, ours, 0)):
            confident = int((one.scores[:, 0] >= CONFIDENT).sum()) or fewest
            chosen = Listed(*(array[: min(confident, MOST_COMPARED)] for array in one))
            ious = _ious(chosen.boxes_xyxy_px, other.boxes_xyxy_px)
            same = (
                (chosen.labels[:, None] == other.labels)
                & (np.abs(chosen.scores - other.scores[:, 0]) <= SAME_SCORE)
                & (ious >= SAME_BOX_IOU)
            )
            here = np.flatnonzero(same.any(axis=1))
            there = np.where(same, ious, -1).argmax(axis=1)[here]
            box_px = max(box_px, np.abs(chosen.boxes_xyxy_px[here] - other.boxes_xyxy_px[there]).max(initial=0))
            score = max(score, np.abs(chosen.scores[here] - other.scores[there]).max(initial=0))
            found += len(here)
            total += len(chosen.labels)
    return Matched(found, total, float(box_px), float(score))


def _ious(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """The IoU of every box of N×4 with every one of M×4, xyxy: N×M; 0 where it is undefined."""
    sides = np.minimum(one[:, None, 2:], other[:, 2:]) - np.maximum(one[:, None, :2], other[:, :2])
    overlap = sides.clip(min=0).prod(axis=-1)
    area, others = ((boxes[:, 2:] - boxes[:, :2]).prod(axis=-1) for boxes in (one, other))
    union = area[:, None] + others - overlap
    return np.divide(overlap, union, out=np.zeros_like(overlap), where=union > 0)


def compare(expected: Listed, actual: Listed) -> OutputGap:
    """Match two outputs for one image, and measure how the pairs differ."""
    here, there = _pairs(expected, actual)
    box_px = np.abs(expected.boxes_xyxy_px[here] - actual.boxes_xyxy_px[there]).max(initial=0)
    score = np.abs(expected.scores[here] - actual.scores[there]).max(initial=0)
    lost = max(_num_unexplained(expected, here, actual), _num_unexplained(actual, there, expected))
    return OutputGap(float(box_px), float(score), int((here != there).sum()), lost)


def _pairs(expected: Listed, actual: Listed) -> tuple[np.ndarray, np.ndarray]:
    """Return indices of entries that agree: first at the same position, then elsewhere, the nearest first."""
    places = np.arange(len(expected.labels))
    agree = _distance(expected, actual) <= 1
    left = places[~agree]
    apart = _distance(
        Listed(*(array[left, None] for array in expected)), Listed(*(array[None, left] for array in actual))
    )
    pairs = {int(place): int(place) for place in places[agree]}
    taken = set(pairs)
    for flat in np.argsort(apart, axis=None):
        row, column = divmod(int(flat), max(len(left), 1))
        if not apart[row, column] <= 1:
            break
        if int(left[row]) not in pairs and int(left[column]) not in taken:
            pairs[int(left[row])] = int(left[column])
            taken.add(int(left[column]))
    return np.array(list(pairs), dtype=int), np.array(list(pairs.values()), dtype=int)


def _distance(a: Listed, b: Listed) -> np.ndarray:
    """Return the largest difference relative to what is allowed, broadcast; infinite for different labels."""
    box = np.abs(a.boxes_xyxy_px - b.boxes_xyxy_px).max(axis=-1) / MAX_BOX_PX
    score = np.abs(a.scores - b.scores).max(axis=-1) / MAX_SCORE
    return np.where(a.labels == b.labels, np.maximum(box, score), np.inf)


def _num_unexplained(listed: Listed, matched: np.ndarray, other: Listed) -> int:
    """Count entries missing from the other list that no tie can have pushed off its end."""
    missing = np.setdiff1d(np.arange(len(listed.labels)), matched)
    if listed.scores.shape[-1] > 1:  # all queries are listed, in any order
        return len(missing)
    # Sorting never increases the largest difference of scores, whichever entries swapped places.
    apart = np.abs(listed.scores - other.scores)[:, 0]
    misplaced = int((~(apart <= MAX_SCORE)).sum())  # NaN too
    if misplaced:
        return max(misplaced, len(missing))
    tied_with_last = other.scores[-1, 0] + 2 * apart.max(initial=0) + 1e-6
    return int((~(listed.scores[missing, 0] <= tied_with_last)).sum())
