from __future__ import annotations

import numpy as np
import pytest

from made_up_set import Shown, inspected, split_of
from rtdetrv4.doctor.suspects import Suspect, suspected, suspects
from rtdetrv4.evaluation import ImageDetections

CAT, DOG = 0, 1
Row = tuple[int, float, float, float, float]


def detections(*rows: tuple[float, Row]) -> ImageDetections:
    """Detections from (score, (label, corners))."""
    boxes = np.array([row[1:] for _, row in rows], dtype=np.float32).reshape(-1, 4)
    scores = np.array([score for score, _ in rows], dtype=np.float32)
    return ImageDetections(boxes, scores, np.array([row[0] for _, row in rows], dtype=np.int64))


def square(label: int, left: float, top: float, side: float = 100) -> Row:
    return label, left, top, left + side, top + side


def kinds(found: tuple[Suspect, ...]) -> list[tuple[str, int, int | None]]:
    return [(each.kind, each.image, each.box) for each in found]


def test_each_kind_has_the_score_of_its_definition() -> None:
    right = [Shown(f"{i}.jpg", (square(CAT, 0, 0),)) for i in range(9)]
    doubtful = [
        Shown("unlabeled.jpg", (square(CAT, 300, 300),)),
        Shown("missed.jpg", (square(CAT, 0, 0), square(CAT, 300, 300))),
        Shown("renamed.jpg", (square(DOG, 0, 0),)),
        Shown("shifted.jpg", (square(CAT, 50, 0),)),
    ]
    found = [detections((0.5 + 0.04 * i, square(CAT, 0, 0))) for i in range(9)]
    found += [
        detections((0.9, square(CAT, 300, 300)), (0.8, square(CAT, 0, 0))),
        detections((0.9, square(CAT, 0, 0))),
        detections((0.8, square(CAT, 0, 0))),
        detections((0.8, square(CAT, 0, 0))),
    ]
    # Eleven cats are found, with scores of 0.5, 0.54, … 0.82, 0.9 and 0.9: eight of them with at most 0.8.
    trust = 8 / 11
    # All thirteen cats are alike in size; for one that is not found, eleven of twelve others are.
    recall = (11 + 1) / (12 + 2)
    risk = 0.05 / (0.05 + 0.95 * (1 - recall))
    overlap = 50 / 150
    expected = {
        ("unlabeled", 9, None): trust,
        ("other class", 11, 0): trust,
        ("misplaced", 12, 0): 1 - (1 - trust * (1 - overlap)) * (1 - risk),
        ("not found", 10, 1): risk,
    }
    ranked = suspects(split_of([*right, *doubtful]), found)
    assert kinds(ranked) == list(expected)
    assert [each.score for each in ranked] == pytest.approx(list(expected.values()), abs=1e-4)
    other = ranked[1]
    assert (other.given, other.seen, other.confidence) == (DOG, CAT, 0.8)
    assert other.given_xyxy_px == other.seen_xyxy_px == (0, 0, 100, 100)


def test_planted_errors_come_first() -> None:
    rng = np.random.default_rng(0)
    images, found, planted = [], [], {}
    for index in range(150):
        objects = [
            square(int(rng.integers(2)), *(place + rng.integers(0, 40, 2))) for place in ((0, 0), (300, 0), (0, 300))
        ]
        seen = [
            (float(rng.uniform(0.6, 0.95)), (label, x1 + rng.normal(0, 3), y1 + rng.normal(0, 3), x2, y2))
            for label, x1, y1, x2, y2 in objects
            if rng.random() > 0.05  # a weakness of the model
        ]
        seen += [(float(rng.uniform(0.01, 0.3)), square(CAT, *rng.integers(0, 500, 2))) for _ in range(10)]
        labeled = list(objects)
        if index % 10 == 0:
            how = ("unlabeled", "other class", "misplaced")[index // 10 % 3]
            label, x1, y1, x2, y2 = labeled.pop(0)
            seen = [each for each in seen if each[1][4] != y2 or each[1][3] != x2]
            seen.append((0.9, (label, x1, y1, x2, y2)))
            if how == "other class":
                labeled.append((1 - label, x1, y1, x2, y2))
            if how == "misplaced":
                labeled.append((label, x1 + 60, y1, x2 + 60, y2))
            planted[index] = how
        images.append(Shown(f"{index}.jpg", tuple(labeled)))
        found.append(detections(*seen))
    ranked = suspects(split_of(images), found)
    assert {each.image: each.kind for each in ranked[: len(planted)]} == planted
    scores = [each.score for each in ranked]
    assert scores == sorted(scores, reverse=True)
    assert 0 <= scores[-1] <= scores[0] <= 1


def test_crowds_second_detections_and_unreadable_images_raise_no_suspicion() -> None:
    box = square(CAT, 0, 0)
    images = [
        Shown("right.jpg", (box,)),
        Shown("crowd.jpg", ((CAT, 0.0, 0.0, 400.0, 400.0),), is_crowd=True),
        Shown("twice.jpg", (box,)),
        Shown("unreadable.jpg", (box,)),
        Shown("labels.jpg", (box,)),
    ]
    found = [
        detections((0.9, box)),
        detections((0.9, box), (0.8, square(CAT, 200, 200))),
        detections((0.9, box), (0.8, square(CAT, 5, 5))),
        None,
        detections((0.9, box), (0.85, (DOG, *box[1:]))),
    ]
    assert suspects(split_of(images), found) == ()
    assert suspects(split_of(images[:1]), [None]) == ()


def test_without_any_right_detection_nothing_is_suspected_of_lacking_a_label() -> None:
    images = [Shown("a.jpg", (square(CAT, 0, 0),)), Shown("b.jpg")]
    found = [detections(), detections((0.9, square(CAT, 0, 0)))]
    assert kinds(suspects(split_of(images), found)) == [("not found", 0, 0)]


def test_suspects_become_findings_with_both_boxes() -> None:
    images = [Shown(f"{i}.jpg", (square(CAT, 0, 0),)) for i in range(20)]
    images.append(Shown("renamed.jpg", (square(DOG, 0, 0),), size_hw=(640, 640)))
    found = [detections((0.9, square(CAT, 0, 0)))] * 21
    inspection = inspected({"val": images})
    path, facts = list(inspection.facts.items())[-1]
    # The file is twice as large as its annotations say.
    inspection = inspection._replace(facts={**inspection.facts, path: facts._replace(size_hw=(1280, 1280))})
    [(code, example)] = suspected(inspection, lambda _: found)
    assert code == "D403"
    assert example.part == "val"
    assert example.file == "val/renamed.jpg"
    assert example.detail == 'labeled "dog", looks like "cat" with a confidence of 0.90 (suspicion 1.00)'
    assert example.boxes_xyxy_px == ((0, 0, 200, 200), (0, 0, 200, 200))
