"""Labels that a trained model contradicts, the most suspicious first."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rtdetrv4.data.records import Record, RecordTable, Split
from rtdetrv4.doctor.finding import Example
from rtdetrv4.doctor.inspection import Inspection
from rtdetrv4.doctor.overview import boxes_on_file
from rtdetrv4.evaluation import ImageDetections
from rtdetrv4.evaluation.matching import UNMATCHED, box_overlaps, find_overlaps, match
from rtdetrv4.evaluation.operating_curves import best_confidence, operating_curves

Kind = Literal["unlabeled", "not found", "other class", "misplaced"]
Box = tuple[float, float, float, float]
Detect = Callable[[Split], Sequence[ImageDetections | None]]
"""Finds objects in the images of a split: the detections in each, unsure ones too, or None if it cannot be read."""
CODE_OF: dict[Kind, str] = {"unlabeled": "D401", "not found": "D402", "other class": "D403", "misplaced": "D404"}
MIN_SCORE = 0.5
"""From here on, a suspect is a finding."""

SAME_OBJECT_IOU = 0.5
MIN_TOUCHING_IOU = 0.1
"""From here on, a detection beside a label that nothing else finds may mean the same object."""
ASSUMED_WRONG = 0.05
"""The share of labels assumed to be wrong before the model is asked."""
NUM_ALIKE = 50
"""Labels of one class and of the nearest sizes, among which the model's recall is measured."""
WEIGHT_OF_ALL = 20
"""How many boxes of its own outweigh, for a class, the confidences of all classes together."""


class Suspect(NamedTuple):
    """A label that may be wrong, or an object that may lack one."""

    kind: Kind
    score: float
    """In [0, 1], the higher the more suspicious. It orders suspects; it is not a probability."""
    image: int
    """The image, as the index of its record."""
    box: int | None
    """The label, as the index of its box in the record; None for an object without one."""
    given: int | None
    """The class of the label."""
    given_xyxy_px: Box | None
    seen: int | None
    """The class that the model sees; None if it sees nothing there."""
    seen_xyxy_px: Box | None
    confidence: float | None


class _Image(NamedTuple):
    """The labels of an image without crowds, and its detections above the threshold of their class."""

    boxes: NDArray[np.int64]
    """(m,) of the record."""
    labels: NDArray[np.int64]
    sure: ImageDetections
    iou: NDArray[np.float64]
    """n×m."""
    matches: NDArray[np.int32]
    """(n,) into `boxes`, -1 for none, -2 for a crowd."""
    support: NDArray[np.float64]
    """(m,) in [0, 1]: how well the best detection of the label's class fits it, unsure ones included."""
    notice: NDArray[np.float64]
    """(m,) in [0, 1]: the same for detections of any class."""


def suspected(inspection: Inspection, detect: Detect) -> Iterator[tuple[str, Example]]:
    """Ask a trained model about every part, and yield what it contradicts, the most suspicious first.

    Args:
        inspection: the data set.
        detect: the model, with the classes of the data set.
    """
    for part in inspection.parts.values():
        if part.split is None:
            continue
        names = part.split.classes.names
        paths = part.paths(record.info.file_name for record in part.split.records)
        for each in suspects(part.split, detect(part.split)):
            if each.score < MIN_SCORE:
                break
            info = part.split.records[each.image].info
            path, drawn = paths[each.image], [box for box in (each.given_xyxy_px, each.seen_xyxy_px) if box is not None]
            boxes = boxes_on_file(inspection, path, (info.height, info.width), np.array(drawn))
            detail = f"{_in_words(each, names)} (suspicion {each.score:.2f})"
            yield CODE_OF[each.kind], Example(part.name, inspection.relative(path), None, detail, str(path), boxes)


def _in_words(suspect: Suspect, names: Sequence[str]) -> str:
    given = "" if suspect.given is None else f'"{names[suspect.given]}"'
    seen = "" if suspect.seen is None else f'"{names[suspect.seen]}" with a confidence of {suspect.confidence:.2f}'
    if suspect.kind == "unlabeled":
        return f"{seen}, not labeled"
    if suspect.kind == "not found":
        return f"{given}, not found"
    return f"labeled {given}, looks like {seen}" if suspect.kind == "other class" else f"{given}, off {seen}"


def suspects(split: Split, detections: Sequence[ImageDetections | None]) -> tuple[Suspect, ...]:
    """Rank the labels that confident detections contradict.

    A detection is confident from the threshold of its class with the best F1 on these images. Four kinds are told
    apart: a confident detection where no label is; a label that nothing finds; a confident detection of another class
    on a label; one of the same class beside a label that nothing finds. How far to trust a detection is the share of
    the labels of its class that were found with at most its confidence. How far to suspect a label that was not found
    follows, by Bayes' theorem, from how often labels of its class and size are.

    The model should not have been trained on these images for long: it learns wrong labels too.

    Args:
        split: the images and labels.
        detections: the detections in each image, in the order of the records, unsure ones included; None for images
            that could not be read.

    Returns:
        All suspects by descending score; each label and each detection appears once at most.
    """
    num_classes = split.classes.num_classes
    looked_at = [index for index, found in enumerate(detections) if found is not None]
    if not looked_at:
        return ()
    assert isinstance(split.records, RecordTable), "splits are read as tables"
    records = split.records.subset(looked_at)
    seen = [found for found in detections if found is not None]
    thresholds = _thresholds(records, seen, num_classes)
    images = _compare(records, seen, thresholds)
    trust = _Trust(images, num_classes)
    ranked = [
        suspect
        for index, image, truth, risks in zip(looked_at, images, records, _risks(records, images), strict=True)
        for suspect in _suspects_in(index, image, truth, trust, risks)
    ]
    return tuple(sorted(ranked, key=lambda suspect: -suspect.score))


def _thresholds(
    records: Sequence[Record], detections: Sequence[ImageDetections], num_classes: int
) -> NDArray[np.float64]:
    """(K,): the confidence with the best F1; infinite for a class that is never found."""
    curves = operating_curves(find_overlaps(records, detections), num_classes)
    best = [best_confidence(f1) for f1 in curves.f1]
    return np.array([np.inf if each is None else max(each, 1e-6) for each in best])


def _compare(
    records: RecordTable, detections: Sequence[ImageDetections], thresholds: NDArray[np.float64]
) -> list[_Image]:
    are_sure = [found.scores >= thresholds[found.labels] for found in detections]
    sure = [
        ImageDetections(*(array[chosen] for array in found)) for found, chosen in zip(detections, are_sure, strict=True)
    ]
    matches = match(find_overlaps(records, sure))[:, 0]
    bounds = np.cumsum([len(found.scores) for found in sure])[:-1]
    images: list[_Image] = []
    for index, own_matches in enumerate(np.split(matches, bounds)):
        truth, found = records[index], detections[index]
        boxes = np.flatnonzero(~truth.is_crowd)
        number = np.cumsum(~truth.is_crowd) - 1  # of each box among those that are no crowd
        is_matched = own_matches >= 0
        own_matches[is_matched] = number[own_matches[is_matched] - records.first_box[index]]
        labels = truth.labels[boxes]
        iou = _iou(found.boxes_xyxy_px, truth.boxes_xyxy_px[boxes])
        fits = np.minimum(found.scores / thresholds[found.labels], 1)[:, None] * iou
        images.append(
            _Image(
                boxes=boxes,
                labels=labels,
                sure=sure[index],
                iou=iou[are_sure[index]],
                matches=own_matches,
                support=np.max(fits, axis=0, initial=0, where=found.labels[:, None] == labels),
                notice=np.max(fits, axis=0, initial=0),
            )
        )
    return images


class _Trust:
    """How far to trust a detection, by its class and confidence.

    Args:
        images: whose matched detections tell.
        num_classes: K.
    """

    def __init__(self, images: Sequence[_Image], num_classes: int) -> None:
        scores = np.concatenate([np.zeros(0), *(image.sure.scores[image.matches >= 0] for image in images)])
        labels = np.concatenate([np.zeros(0, int), *(image.sure.labels[image.matches >= 0] for image in images)])
        self._all = np.sort(scores)
        self._own = [np.sort(scores[labels == label]) for label in range(num_classes)]

    def of(self, score: float, label: int) -> float:
        """The share, in [0, 1], of found labels of the class whose detections are no more confident than this one."""
        own = self._own[label]
        overall = np.searchsorted(self._all, score, side="right") / max(len(self._all), 1)
        below = np.searchsorted(own, score, side="right")
        return float((below + WEIGHT_OF_ALL * overall) / (len(own) + WEIGHT_OF_ALL))


def _risks(records: Sequence[Record], images: Sequence[_Image]) -> list[NDArray[np.float64]]:
    """(m,) of each image: how likely a label is wrong if it is not found, from the recall of labels like it."""
    labels = np.concatenate([np.zeros(0, int), *(image.labels for image in images)])
    areas = np.concatenate(
        [np.zeros(0), *(_areas(truth)[image.boxes] for truth, image in zip(records, images, strict=True))]
    )
    is_found = np.concatenate([np.zeros(0, bool), *(_is_found(image) for image in images)])
    order = np.lexsort((areas, labels))
    recall = np.zeros(len(labels))
    for own in np.split(order, np.flatnonzero(np.diff(labels[order])) + 1):
        if not len(own):
            continue
        width = min(NUM_ALIKE, len(own))
        first = np.clip(np.arange(len(own)) - width // 2, 0, len(own) - width)
        total = np.concatenate([[0], np.cumsum(is_found[own])])
        others = total[first + width] - total[first] - is_found[own]
        recall[own] = (others + 1) / (width + 1)  # one more of either outcome, so that it is neither 0 nor 1
    risk = ASSUMED_WRONG / (ASSUMED_WRONG + (1 - ASSUMED_WRONG) * (1 - recall))
    return np.split(risk, np.cumsum([len(image.labels) for image in images])[:-1])


def _areas(truth: Record) -> NDArray[np.float64]:
    return (truth.boxes_xyxy_px[:, 2:] - truth.boxes_xyxy_px[:, :2]).prod(axis=1, dtype=np.float64)


def _is_found(image: _Image) -> NDArray[np.bool_]:
    is_found = np.zeros(len(image.labels), dtype=np.bool_)
    is_found[image.matches[image.matches >= 0]] = True
    return is_found


def _suspects_in(
    index: int, image: _Image, truth: Record, trust: _Trust, risks: NDArray[np.float64]
) -> Iterator[Suspect]:
    """The suspects of one image; detections choose first, the most confident before the others."""
    is_open = ~_is_found(image)
    sure, iou = image.sure, image.iou
    free = np.flatnonzero(image.matches == UNMATCHED)
    taken: list[int] = []

    def suspect(kind: Kind, score: float, label: int | None, found: int | None) -> Suspect:
        return Suspect(
            kind=kind,
            score=round(float(score), 4),
            image=index,
            box=None if label is None else int(image.boxes[label]),
            given=None if label is None else int(image.labels[label]),
            given_xyxy_px=None if label is None else _box(truth.boxes_xyxy_px[image.boxes[label]]),
            seen=None if found is None else int(sure.labels[found]),
            seen_xyxy_px=None if found is None else _box(sure.boxes_xyxy_px[found]),
            confidence=None if found is None else round(float(sure.scores[found]), 4),
        )

    for found in free[np.argsort(-sure.scores[free], kind="stable")].tolist():
        own_class, trusted = int(sure.labels[found]), trust.of(float(sure.scores[found]), int(sure.labels[found]))
        same = image.labels == own_class
        nearest = float(iou[found].max(initial=0))
        if taken and _iou(sure.boxes_xyxy_px[[found]], sure.boxes_xyxy_px[taken]).max() >= SAME_OBJECT_IOU:
            continue
        if nearest >= SAME_OBJECT_IOU:
            on = np.flatnonzero(is_open & ~same & (iou[found] >= SAME_OBJECT_IOU))
            # A free label of its own class that it fits was matched; on any other, it is a second detection.
            if not len(on) or (same & (iou[found] >= SAME_OBJECT_IOU)).any():
                continue
            label = int(on[iou[found][on].argmax()])
            yield suspect("other class", trusted * iou[found, label] * (1 - image.support[label]), label, found)
            is_open[label] = False
        else:
            beside = np.flatnonzero(is_open & same & (iou[found] >= MIN_TOUCHING_IOU))
            is_missing = trusted * (1 - nearest)
            if len(beside):
                label = int(beside[iou[found][beside].argmax()])
                yield suspect("misplaced", 1 - (1 - is_missing) * (1 - risks[label]), label, found)
                is_open[label] = False
            else:
                yield suspect("unlabeled", is_missing, None, found)
        taken.append(found)
    for label in np.flatnonzero(is_open).tolist():
        yield suspect("not found", float(risks[label] * (1 - image.notice[label])), label, None)


def _iou(boxes: NDArray[np.float32], others: NDArray[np.float32]) -> NDArray[np.float64]:
    """(n, m)."""
    return box_overlaps(boxes, others, np.zeros(len(others), dtype=np.bool_))


def _box(xyxy: NDArray[np.float32]) -> Box:
    left, top, right, bottom = (round(value, 2) for value in xyxy.tolist())
    return left, top, right, bottom
