"""Which of a model's predictions `predict` returns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from rtdetrv4.errors import ConfigError, did_you_mean

Duplicates = Literal["drop", "keep"]
Confidence = float | Mapping[str, float] | Literal["best"]
"""The minimum confidence: one number, one for each class name, or the thresholds that the weights remember."""

SAME_OBJECT_IOU = 0.9
"""Two boxes of one class that overlap this much are one object.

Among 13,721 annotated boxes of blood cells, faces and sea animals, 7 pairs do, all of them cells drawn twice.
"""
NUM_LISTED = 10


class Selection:
    """The choice that a user makes among predictions; the same for every runtime.

    Args:
        names: K class names.
        conf: minimum confidence, or a mapping from class name to minimum confidence, which leaves out the classes that
            it does not name, or "best" for `best`.
        best: the threshold of each class that was best in validation, by name; None if it is not known.
        classes: the classes to return, by name or index; None returns all.
        max_det: the most objects per image, the most confident first; None sets no limit.
        duplicates: see `drop_duplicates`; "keep" returns every (query, class) pair, as evaluation does.

    Raises:
        ConfigError: an argument is invalid, or names a class that does not exist.
    """

    def __init__(
        self,
        names: tuple[str, ...],
        *,
        conf: Confidence = 0.25,
        best: Mapping[str, float] | None = None,
        classes: Sequence[str | int] | str | int | None = None,
        max_det: int | None = None,
        duplicates: Duplicates = "drop",
    ) -> None:
        if duplicates not in ("drop", "keep"):
            raise ConfigError(f'duplicates: got "{duplicates}", expected drop or keep.')
        if max_det is not None and (not isinstance(max_det, int | np.integer) or max_det < 1):
            raise ConfigError(f"max_det: got {max_det}, expected a whole number from 1, or None for no limit.")
        self._thresholds = thresholds(_numbers(conf, best), names)
        if classes is not None:
            others = np.setdiff1d(np.arange(len(names)), class_indices(classes, names))
            self._thresholds[others] = np.inf
        self.max_det = max_det
        """How many of the chosen predictions of an image to return, at most."""
        self._drops_duplicates = duplicates == "drop"

    def __call__(self, scores: np.ndarray, labels: np.ndarray, boxes_xyxy: np.ndarray) -> np.ndarray:
        """Indices (m,) of the predictions chosen for an image or a tile of one, however many, in their order.

        Duplicates go first, so that a choice of classes never brings up a second label of an object.

        Args:
            scores: (n,) in descending order. NaN is never chosen.
            labels: (n,) in [0, K).
            boxes_xyxy: (n, 4) of any scale, as the model gave them.
        """
        possible = np.flatnonzero(scores >= self._thresholds.min(initial=np.inf))
        if self._drops_duplicates:
            possible = possible[drop_duplicates(labels[possible], boxes_xyxy[possible])]
        return possible[scores[possible] >= self._thresholds[labels[possible]]]


def drop_duplicates(labels: np.ndarray, boxes_xyxy: np.ndarray, iou: float = SAME_OBJECT_IOU) -> np.ndarray:
    """Indices (m,) of predictions without those that repeat a better one.

    A query keeps only its best label. Postprocessing, which may be part of an exported graph, lists a query once per
    label and does not say which query it was; predictions with exactly the same box are taken to be of one. Then, of
    boxes of one class with at least this IoU, the best stays: a second query on the same object.

    Args:
        labels: (n,), by descending score.
        boxes_xyxy: (n, 4) of any scale, as the model gave them: not clipped to the image.
        iou: from 0 to 1.
    """
    first_of: dict[tuple[float, ...], int] = {}
    for index, box in enumerate(map(tuple, boxes_xyxy.tolist())):
        first_of.setdefault(box, index)
    queries = np.array(list(first_of.values()), dtype=np.int64)
    labels, boxes = labels[queries], boxes_xyxy[queries].astype(np.float32)
    with np.errstate(invalid="ignore"):  # infinite boxes of damaged weights
        better, worse = _pairs_within_reach(boxes, iou)
        sides = np.minimum(boxes[better, 2:], boxes[worse, 2:]) - np.maximum(boxes[better, :2], boxes[worse, :2])
        overlap = sides.clip(min=0).prod(axis=1)
        areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
        same = (overlap > 0) & (overlap >= iou * (areas[better] + areas[worse] - overlap))
    same &= labels[better] == labels[worse]
    kept = np.ones(len(queries), dtype=bool)
    for one, other in sorted(zip(better[same].tolist(), worse[same].tolist(), strict=True)):
        kept[other] &= not kept[one]
    return queries[kept]


def _pairs_within_reach(boxes: np.ndarray, iou: float) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of indices, the lower first, of all boxes (n, 4) that may have this IoU, and of some that have not.

    Their left edges differ by at most 1 - iou of the width of the one further to the left. Comparing all pairs of 300
    boxes would take 2 ms, thirty times as long.
    """
    order = np.argsort(boxes[:, 0], kind="stable")
    left, right = boxes[order, 0], boxes[order, 2]
    end = np.searchsorted(left, left + (1 - iou) * (right - left) + np.spacing(np.abs(right)), side="right")
    start = np.arange(1, len(boxes) + 1)
    counts = np.maximum(end - start, 0)
    first = np.repeat(order, counts)
    skipped = np.repeat(np.cumsum(counts) - counts - start, counts)
    second = order[np.arange(counts.sum()) - skipped]
    return np.minimum(first, second), np.maximum(first, second)


def thresholds(conf: float | Mapping[str, float], names: tuple[str, ...]) -> np.ndarray:
    """The minimum confidence of each class, (K,) float32; infinite for classes that a mapping leaves out.

    Raises:
        ConfigError: a number is not in [0, 1], or a mapping names a class that does not exist.
    """
    by_name = conf if isinstance(conf, Mapping) else dict.fromkeys(names, conf)
    for name, value in by_name.items():
        if name not in names:
            raise ConfigError(f"conf: {_unknown(name, names)}")
        if not (isinstance(value, int | float | np.number) and 0 <= value <= 1):
            raise ConfigError(f"conf: got {value}, expected a number from 0 to 1, or one for each class name.")
    return np.array([by_name.get(name, np.inf) for name in names], dtype=np.float32)


def _numbers(conf: Confidence, best: Mapping[str, float] | None) -> float | Mapping[str, float]:
    if not isinstance(conf, str):
        return conf
    if conf != "best":
        raise ConfigError(f'conf: got "{conf}", expected a number from 0 to 1, one for each class name, or "best".')
    if best is None:
        raise ConfigError(
            'conf: got "best", but this model remembers no thresholds; training stores them in its weights, if there '
            "are validation images. Give a number, such as 0.25, or the thresholds that `rtdetrv4 val --out` writes."
        )
    return best


def class_indices(classes: Sequence[str | int] | str | int, names: tuple[str, ...]) -> list[int]:
    """Indices of classes that are given by name or index.

    Raises:
        ConfigError: one of them does not exist.
    """
    indices = []
    for given in [classes] if isinstance(classes, str | int) else classes:
        if isinstance(given, str) and given in names:
            indices.append(names.index(given))
        elif _is_number(given) and 0 <= int(given) < len(names):
            indices.append(int(given))
        else:
            raise ConfigError(f"classes: {_unknown(given, names)}")
    return indices


def _is_number(given: object) -> bool:
    """Whether this is a number, which is text on a command line."""
    return isinstance(given, int | np.integer) or (isinstance(given, str) and given.isdecimal() and len(given) < 10)


def _unknown(given: object, names: tuple[str, ...]) -> str:
    more = f", … (0 to {len(names) - 1})" if len(names) > NUM_LISTED else ""
    listed = ", ".join(names[:NUM_LISTED])
    return f'there is no class "{given}"; the classes are {listed}{more}.{did_you_mean(str(given), names)}'
