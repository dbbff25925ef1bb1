from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from rtdetrv4.errors import ConfigError
from rtdetrv4.runtime.selection import Selection, drop_duplicates, thresholds

NAMES = ("cat", "dog", "bird")
BOX = np.array([0.1, 0.1, 0.5, 0.5], np.float32)


def shifted(share: float) -> np.ndarray:
    """BOX moved to the right by a share of its width: an IoU of (1 - share) / (1 + share)."""
    return BOX + np.array([0.4 * share, 0, 0.4 * share, 0], np.float32)


def test_a_query_keeps_its_best_label() -> None:
    boxes = np.stack([BOX, shifted(2), BOX, BOX])
    assert drop_duplicates(np.array([0, 1, 1, 2]), boxes).tolist() == [0, 1]


def test_nearly_identical_boxes_of_one_class_are_one_object() -> None:
    near, far = shifted(0.04), shifted(0.06)  # IoU 0.923 and 0.887
    assert drop_duplicates(np.array([0, 0]), np.stack([BOX, near])).tolist() == [0]
    assert drop_duplicates(np.array([0, 0]), np.stack([BOX, far])).tolist() == [0, 1]
    assert drop_duplicates(np.array([0, 1]), np.stack([BOX, near])).tolist() == [0, 1], "of two classes both stay"
    # The second is gone, so the third, which only it resembles, stays.
    assert drop_duplicates(np.array([0, 0, 0]), np.stack([BOX, near, shifted(0.08)])).tolist() == [0, 2]


def test_boxes_without_area_are_no_duplicates_of_each_other() -> None:
    boxes = np.array([[0.1, 0.1, 0.1, 0.1], [0.8, 0.8, 0.8, 0.8], [0.1, 0.2, 0.5, 0.2]], np.float32)
    assert drop_duplicates(np.zeros(3, int), boxes).tolist() == [0, 1, 2]


@pytest.mark.parametrize("count", [0, 1, 300])
def test_nothing_is_lost_where_nothing_overlaps(count: int) -> None:
    boxes = np.arange(count)[:, None] + np.array([0, 0, 1, 1], np.float16)
    assert drop_duplicates(np.zeros(count, int), boxes).tolist() == list(range(count))


def test_against_the_definition() -> None:
    """One prediction after the other: it stays unless a better one that stays is of its query, or nearly its box."""
    rng = np.random.default_rng(0)
    for _ in range(50):
        low = rng.random((12, 2)).astype(np.float32).round(1)
        queries = np.concatenate([low, low + 0.3 + rng.random((12, 2)).astype(np.float32) * 0.03], axis=1)
        boxes, labels = queries[rng.integers(0, 12, 60)], rng.integers(0, 3, 60)
        kept: list[int] = []
        seen: list[bytes] = []
        for i in range(60):
            if boxes[i].tobytes() in seen:
                continue
            seen.append(boxes[i].tobytes())
            sides = np.minimum(boxes[i, 2:], boxes[kept, 2:]) - np.maximum(boxes[i, :2], boxes[kept, :2])
            inner = sides.clip(min=0).prod(axis=1)
            areas = [float((box[2:] - box[:2]).prod()) for box in (boxes[i], *boxes[kept])]
            iou = inner / (areas[0] + np.array(areas[1:]) - inner)
            if not (iou[labels[kept] == labels[i]] >= 0.9).any():
                kept.append(i)
        assert drop_duplicates(labels, boxes).tolist() == kept


def select(scores: list[float], labels: list[int], boxes: list[np.ndarray], **options: Any) -> list[int]:
    return Selection(NAMES, **options)(np.array(scores, np.float32), np.array(labels), np.stack(boxes)).tolist()


def test_confidence_classes_and_number() -> None:
    scores, labels = [0.9, 0.6, 0.3, 0.1], [0, 1, 1, 2]
    boxes = [shifted(2 * i) for i in range(4)]
    assert select(scores, labels, boxes) == [0, 1, 2]
    assert select(scores, labels, boxes, conf=0.6) == [0, 1], "0.6 is enough, in spite of rounding"
    assert select(scores, labels, boxes, conf=np.float64(0.6)) == [0, 1]
    assert select(scores, labels, boxes, conf={"dog": 0.5, "bird": 0}) == [1, 3]
    assert select(scores, labels, boxes, classes=["dog"]) == select(scores, labels, boxes, classes=1) == [1, 2]
    assert select(scores, labels, boxes, classes="cat") == [0]
    assert select(scores, labels, boxes, classes=np.array([0, 2]), conf=0) == [0, 3]
    assert select(scores, labels, boxes, classes=[]) == []


def test_a_choice_of_classes_brings_up_no_second_label() -> None:
    """A cat that is a dog by 0.3 is a cat, also for those who look for dogs."""
    assert select([0.8, 0.3], [0, 1], [BOX, BOX]) == [0]
    assert select([0.8, 0.3], [0, 1], [BOX, BOX], classes=["dog"]) == []
    assert select([0.8, 0.3], [0, 1], [BOX, BOX], conf={"dog": 0.2}) == []
    assert select([0.8, 0.3], [0, 1], [BOX, BOX], duplicates="keep") == [0, 1]
    assert select([0.8, 0.3], [0, 1], [BOX, BOX], duplicates="keep", classes=["dog"]) == [1]


def test_numbers_that_are_none() -> None:
    assert select([np.nan, np.nan], [0, 1], [BOX, BOX * np.nan], conf=0) == []
    assert select([1.0, np.nan], [0, 1], [BOX * np.inf, BOX], conf=0) == [0]


def test_thresholds_that_are_none() -> None:
    np.testing.assert_array_equal(thresholds({"dog": 0.5}, NAMES), [np.inf, 0.5, np.inf])
    for wrong in (-0.1, 1.5, 25, np.nan, "0.5", None):
        with pytest.raises(ConfigError, match=r"conf: got .*, expected a number from 0 to 1"):
            thresholds(wrong, NAMES)  # type: ignore[arg-type]
    for wrong in (["dgo"], [3], -1, [None], [1.0]):
        with pytest.raises(ConfigError, match=r"classes: there is no class .*; the classes are cat, dog, bird\."):
            Selection(NAMES, classes=wrong)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r'"dgo"; .*\. Did you mean "dog"\?'):
        Selection(NAMES, classes="dgo")
    with pytest.raises(ConfigError, match=r"are 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, … \(0 to 79\)\."):
        Selection(tuple(map(str, range(80))), classes="dog")


def test_best_thresholds_are_those_that_are_remembered() -> None:
    scores, labels = [0.9, 0.6, 0.3, 0.1], [0, 1, 1, 2]
    boxes = [shifted(2 * i) for i in range(4)]
    best = {"cat": 0.95, "dog": 0.2, "bird": 0.1}
    assert select(scores, labels, boxes, conf="best", best=best) == [1, 2, 3]
    assert select(scores, labels, boxes, conf=0.5, best=best) == [0, 1]
    with pytest.raises(ConfigError, match=r'conf: got "best", but this model remembers no thresholds.*such as 0\.25'):
        Selection(NAMES, conf="best")
    with pytest.raises(ConfigError, match=r'conf: got "bets", expected a number .*, or "best"\.'):
        Selection(NAMES, conf="bets", best=best)  # type: ignore[arg-type]
