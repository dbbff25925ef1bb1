"""The images that show what a detector does well, and what it does not."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Literal, NamedTuple

import numpy as np

from rtdetrv4.data.records import Record
from rtdetrv4.evaluation.coco_evaluator import ImageDetections
from rtdetrv4.evaluation.matching import UNMATCHED, Overlaps
from rtdetrv4.evaluation.mistakes import KINDS, Kind, Mistakes

NUM_SHOWN = 12
_WHY_FALSE: dict[Kind, str] = {
    "localization": "beside its object",
    "duplicate": "found already",
    "background": "nothing there",
    "both": "neither the class nor the place of an object",
}


class DrawnBox(NamedTuple):
    """A box to draw on an image."""

    kind: Literal["truth", "found"]
    name: str
    """The class."""
    xyxy: tuple[float, float, float, float]
    """Pixels of the image."""
    score: float | None
    """The confidence of a detection, None for the truth."""
    is_marked: bool
    """Whether the example is about this box."""


class Example(NamedTuple):
    """One image of a gallery."""

    image_index: int
    """The position in the records."""
    file: str
    """The image file, relative to the image folder."""
    size_hw: tuple[int, int]
    """The size of the image that the boxes assume."""
    score: float
    """What the gallery is sorted by, see `Galleries`; for `missed`, the confidence of the best detection of the box."""
    detail: str
    """What is to be seen, as a phrase."""
    boxes: tuple[DrawnBox, ...]
    """All boxes, and all detections above the confidence threshold."""


class Galleries(NamedTuple):
    """Up to twelve images of each kind, with every image at most once in a kind.

    The quality of an image is the sum of the overlaps of its objects with the detections that found them, divided by
    the number of objects found plus half the number of wrong detections and missed objects: panoptic quality, from 0
    to 1.
    """

    best: tuple[Example, ...]
    """By descending quality, of equal ones those with more objects first; at most half of the images."""
    worst: tuple[Example, ...]
    """By ascending quality, of equal ones those with more mistakes first; only images with mistakes."""
    false: tuple[Example, ...]
    """Detections without an object, the most confident first; those of a wrong class are in `confused`."""
    missed: tuple[Example, ...]
    """Objects that no detection found or nearly found, the largest share of an image first."""
    confused: tuple[Example, ...]
    """Objects detected as another class, the most confident detection first."""


def choose_examples(
    records: Sequence[Record],
    detections: Sequence[ImageDetections],
    names: tuple[str, ...],
    overlaps: Overlaps,
    matches: np.ndarray,
    mistakes: Mistakes,
    confidence: float,
) -> Galleries:
    """Choose images for all galleries.

    Args:
        records: the ground truth of each image.
        detections: the detections in each image, in the same order.
        names: the K class names.
        overlaps: those of all N detections with all M boxes.
        matches: (N,), from `match` at an IoU of 0.5.
        mistakes: those of the detections above `confidence`.
        confidence: less confident detections do not count.

    References:
        Kirillov et al., Panoptic Segmentation, CVPR 2019, section 4.1, for the quality of an image.
    """
    is_sure = overlaps.scores >= confidence
    first_found = _first([len(each.scores) for each in detections])
    first_true = _first([len(each.labels) for each in records])

    def example(image: int, score: float, detail: str, *, found: int = -1, box: int = -1) -> Example:
        record, own = records[image], detections[image]
        truth = [
            DrawnBox("truth", names[label], _rounded(xyxy), None, index + first_true[image] == box)
            for index, (xyxy, label) in enumerate(zip(record.boxes_xyxy_px, record.labels.tolist(), strict=True))
            if not record.is_crowd[index]
        ]
        shown = [
            DrawnBox("found", names[int(own.labels[index])], _rounded(own.boxes_xyxy_px[index]),
                     round(float(own.scores[index]), 4), index + first_found[image] == found)
            for index in np.flatnonzero(own.scores >= confidence).tolist()
        ]  # fmt: skip
        info = record.info
        return Example(image, info.file_name, (info.height, info.width), float(score), detail, (*truth, *shown))

    def named(found: int) -> str:
        return f"{names[overlaps.labels[found]]} {overlaps.scores[found]:.2f}"

    def false(found: int) -> Example:
        why = _WHY_FALSE[KINDS[mistakes.kinds[found]]]
        image = int(overlaps.images[found])
        return example(image, overlaps.scores[found], f"{named(found)}: {why}", found=found)

    def confused(found: int) -> Example:
        box = int(mistakes.boxes[found])
        detail = f"{names[overlaps.true_labels[box]]} taken for {named(found)}"
        return example(int(overlaps.images[found]), overlaps.scores[found], detail, found=found, box=box)

    hits = overlaps.is_own & (overlaps.overlap >= 0.5)
    best_score = np.zeros(len(overlaps.true_labels), dtype=np.float32)
    np.maximum.at(best_score, overlaps.truth[hits], overlaps.scores[overlaps.found[hits]])

    def missed(box: int) -> Example:
        score = best_score[box]
        how = f"at most {score:.2f} sure of it" if score else "found at no confidence"
        return example(int(overlaps.true_images[box]), score, f"{names[overlaps.true_labels[box]]}: {how}", box=box)

    is_confused = mistakes.kinds == KINDS.index("classification")
    wrong = np.flatnonzero((mistakes.kinds >= 0) & ~is_confused)
    wrong = wrong[np.argsort(overlaps.places[wrong])]
    mixed_up = np.flatnonzero(is_confused)
    mixed_up = mixed_up[np.argsort(overlaps.places[mixed_up])]
    lost = np.flatnonzero(mistakes.is_missed)
    lost = lost[np.argsort(-_shares(records)[lost], kind="stable")]

    quality, num_found, num_missed, num_wrong = _qualities(overlaps, matches, is_sure, len(records))
    num_objects, num_mistakes = num_found + num_missed, num_missed + num_wrong
    judged = np.flatnonzero(num_objects + num_wrong)
    by_best = judged[np.lexsort((-num_objects[judged], -quality[judged]))]
    best = [i for i in by_best[: min(NUM_SHOWN, -(-len(judged) // 2))].tolist() if quality[i] > 0]
    by_worst = judged[np.lexsort((-num_mistakes[judged], quality[judged]))]
    worst = [i for i in by_worst.tolist() if num_mistakes[i] and i not in best][:NUM_SHOWN]

    def whole(image: int) -> Example:
        counts = f"{num_found[image]} found, {num_missed[image]} missed, {num_wrong[image]} wrong"
        return example(image, quality[image], counts)

    return Galleries(
        best=tuple(map(whole, best)),
        worst=tuple(map(whole, worst)),
        false=_once_per_image(wrong, overlaps.images, false),
        missed=_once_per_image(lost, overlaps.true_images, missed),
        confused=_once_per_image(mixed_up, overlaps.images, confused),
    )


def _qualities(overlaps: Overlaps, matches: np.ndarray, is_sure: np.ndarray, num_images: int) -> tuple[np.ndarray, ...]:
    """Quality, objects found, objects missed and wrong detections of each image."""
    right, wrong = is_sure & (matches >= 0), is_sure & (matches == UNMATCHED)
    is_missed = ~overlaps.is_crowd
    is_missed[matches[right]] = False
    is_match = (matches[overlaps.found] == overlaps.truth) & is_sure[overlaps.found]
    overlap = np.bincount(overlaps.images[overlaps.found[is_match]], overlaps.overlap[is_match], num_images)
    num_found = np.bincount(overlaps.images[right], minlength=num_images)
    num_missed = np.bincount(overlaps.true_images[is_missed], minlength=num_images)
    num_wrong = np.bincount(overlaps.images[wrong], minlength=num_images)
    quality = overlap / np.maximum(num_found + (num_missed + num_wrong) / 2, 0.5)
    return quality, num_found, num_missed, num_wrong


def _shares(records: Sequence[Record]) -> np.ndarray:
    """(M,) the share of its image that each box covers."""
    return np.concatenate(
        [
            np.prod(record.boxes_xyxy_px[:, 2:] - record.boxes_xyxy_px[:, :2], axis=1)
            / max(record.info.height * record.info.width, 1)
            for record in records
        ]
    )


def _once_per_image(ranked: np.ndarray, images: np.ndarray, show: Callable[[int], Example]) -> tuple[Example, ...]:
    """The first entries of a ranking, of each image only one."""
    firsts = np.sort(np.unique(images[ranked], return_index=True)[1])[:NUM_SHOWN]
    return tuple(map(show, ranked[firsts].tolist()))


def _first(counts: Sequence[int]) -> list[int]:
    return np.cumsum([0, *counts]).tolist()


def _rounded(xyxy: Iterable[float]) -> tuple[float, float, float, float]:
    left, top, right, bottom = (round(float(side), 1) for side in xyxy)
    return left, top, right, bottom
