"""The analysis on boxes one can follow by hand, and against COCO's metrics of predictions mended one by one."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from rtdetrv4.data.records import Record
from rtdetrv4.evaluation import Analysis, CocoEvaluator, ImageDetections, analyze
from rtdetrv4.evaluation.average_precision import average_precision
from rtdetrv4.evaluation.calibration import calibrate
from rtdetrv4.evaluation.matching import IGNORED, IOU_THRESHOLDS, find_overlaps, match
from rtdetrv4.evaluation.mistakes import KINDS, find_mistakes
from rtdetrv4.types import ClassMap, ImageInfo

NAMES = ("cat", "dog", "bird")
CLASSES = ClassMap(NAMES, (3, 5, 8))
BOX, FAR = (0, 0, 40, 40), (100, 100, 140, 140)

Box = tuple[float, float, float, float]
Found = tuple[Box, int, float]


def shifted(by: float) -> Box:
    """BOX moved to the right: an IoU of (40 - by) / (40 + by)."""
    return (by, 0, 40 + by, 40)


def record_of(truth: list[tuple[Box, int]], image_id: int = 1, crowd: tuple[int, ...] = ()) -> Record:
    boxes = np.array([box for box, _ in truth], np.float32).reshape(-1, 4)
    return Record(
        ImageInfo(image_id, f"{image_id}.jpg", 200, 200),
        boxes,
        np.array([label for _, label in truth], np.int64),
        np.isin(np.arange(len(truth)), crowd),
        np.prod(boxes[:, 2:].astype(np.float64) - boxes[:, :2], axis=1),
    )


def detections_of(found: list[Found]) -> ImageDetections:
    ordered = sorted(found, key=lambda each: -each[2])
    return ImageDetections(
        np.array([box for box, _, _ in ordered], np.float32).reshape(-1, 4),
        np.array([score for _, _, score in ordered], np.float32),
        np.array([label for _, label, _ in ordered], np.int64),
    )


def evaluator_of(images: list[tuple[list[tuple[Box, int]], list[Found]]], **more: Any) -> CocoEvaluator:
    evaluator = CocoEvaluator([record_of(truth, i, **more) for i, (truth, _) in enumerate(images)], CLASSES)
    evaluator.merge([{i: detections_of(found) for i, (_, found) in enumerate(images)}])
    return evaluator


def analysis_of(images: list[tuple[list[tuple[Box, int]], list[Found]]], **more: Any) -> Analysis:
    evaluator = evaluator_of(images, **more)
    return analyze(evaluator.records, evaluator.detections, CLASSES, evaluator.compute())


def random_images(seed: int, num_images: int = 12) -> list[tuple[list[tuple[Box, int]], list[Found]]]:
    """Crowded images, with detections that are right, beside, of a wrong class, double or invented."""
    rng = np.random.default_rng(seed)

    def random_box() -> Box:
        left, top = rng.uniform(0, 150, 2)
        width, height = rng.uniform(10, 50, 2)
        return (left, top, left + width, top + height)

    def moved(box: Box, by: float) -> Box:
        left, top, right, bottom = box
        x, y = rng.normal(0, by, 2) * (right - left, bottom - top)
        return (left + x, top + y, right + x, bottom + y)

    images = []
    for _ in range(num_images):
        truth = [(random_box(), int(rng.integers(0, 3))) for _ in range(rng.integers(0, 9))]
        found: list[Found] = []
        for box, label in truth:
            for by in (0.05, 0.1, 0.4)[: rng.integers(0, 4)]:
                guess = label if rng.random() < 0.7 else int(rng.integers(0, 3))
                found.append((moved(box, by), guess, float(rng.random())))
        found += [(random_box(), int(rng.integers(0, 3)), float(rng.random())) for _ in range(rng.integers(0, 5))]
        images.append((truth, found))
    return images


@pytest.mark.parametrize("crowd", [(), (0, 3)])
def test_average_precision_is_that_of_coco(crowd: tuple[int, ...]) -> None:
    """With ten thresholds, equal scores and crowd regions."""
    images = [
        (truth, [(box, label, round(score, 1)) for box, label, score in found]) for truth, found in random_images(0, 30)
    ]
    evaluator = evaluator_of(images, crowd=crowd)
    metrics = evaluator.compute()
    overlaps = find_overlaps(evaluator.records, evaluator.detections)
    matches, order = match(overlaps, IOU_THRESHOLDS), np.argsort(overlaps.places)
    ap = average_precision(
        overlaps.labels[order], matches[order] >= 0, matches[order] == IGNORED, overlaps.num_boxes(3)
    )
    np.testing.assert_allclose(ap.mean(axis=1), list(metrics.per_class.values()), rtol=0, atol=1e-9)
    np.testing.assert_allclose(ap[:, 0], list(metrics.per_class_ap50.values()), rtol=0, atol=1e-9)
    assert ap.mean() == pytest.approx(metrics.ap, abs=1e-9)


def test_only_a_hundred_detections_of_a_class_count_in_an_image() -> None:
    """The 101st cat is right, and too late; the dog has the lowest score of all, and counts."""
    wrong = [(FAR, 0, 0.9 - i / 1000) for i in range(100)]
    analysis = analysis_of([([(BOX, 0), (BOX, 1)], [*wrong, (BOX, 0, 0.5), (BOX, 1, 0.4)])])
    assert [each.ap50 for each in analysis.by_class[:2]] == [0, 1]
    missed = next(loss for loss in analysis.lost if loss.kind == "missed")
    assert missed.ap_lost == pytest.approx(0.5), "without its only box, the class is left out of the mean"


LOOSE, BESIDE = shifted(20), shifted(35)  # IoU 0.33 and 0.07
CASES = {
    "right": ([(BOX, 0, 0.9)], [None], []),
    "localization": ([(LOOSE, 0, 0.9)], ["localization"], []),
    "classification": ([(BOX, 1, 0.9)], ["classification"], []),
    "both": ([(LOOSE, 1, 0.9)], ["both"], [0]),
    "duplicate": ([(BOX, 0, 0.9), (shifted(2), 0, 0.8)], [None, "duplicate"], []),
    "background": ([(BESIDE, 0, 0.9)], ["background"], [0]),
    "missed": ([], [], [0]),
    "a second label": ([(BOX, 0, 0.9), (BOX, 1, 0.8)], [None, "classification"], []),
}


@pytest.mark.parametrize("case", CASES)
def test_every_kind_of_mistake(case: str) -> None:
    found, kinds, missed = CASES[case]
    overlaps = find_overlaps([record_of([(BOX, 0)])], [detections_of(found)])
    mistakes = find_mistakes(overlaps, match(overlaps)[:, 0], np.ones(len(found), bool))
    assert [None if k < 0 else KINDS[k] for k in mistakes.kinds.tolist()] == kinds
    assert np.flatnonzero(mistakes.is_missed).tolist() == missed
    assert [mistakes.count(kind) for kind in KINDS] == [
        len(missed) if kind == "missed" else kinds.count(kind) for kind in KINDS
    ]


def test_of_two_kinds_the_first_counts() -> None:
    """A cat at BOX, and a dog that overlaps it: what is beside its own object and on the other's is beside."""
    truth = record_of([(BOX, 0), (LOOSE, 1)])
    overlaps = find_overlaps([truth], [detections_of([(BOX, 1, 0.9)])])
    mistakes = find_mistakes(overlaps, match(overlaps)[:, 0], np.ones(1, bool))
    assert KINDS[mistakes.kinds[0]] == "localization"
    assert mistakes.boxes.tolist() == [1]
    assert mistakes.is_missed.tolist() == [True, False]


def test_a_crowd_region_is_neither_missed_nor_a_mistake() -> None:
    overlaps = find_overlaps(
        [record_of([((0, 0, 100, 100), 0)], crowd=(0,))], [detections_of([(BOX, 0, 0.9), (BOX, 1, 0.8)])]
    )
    mistakes = find_mistakes(overlaps, match(overlaps)[:, 0], np.ones(2, bool))
    assert [k if k < 0 else KINDS[k] for k in mistakes.kinds.tolist()] == [-1, "background"]
    assert not mistakes.is_missed.any()


def iou_of(one: Box, other: Box) -> float:
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    inner = max(width, 0) * max(height, 0)
    return inner / (sum((box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)) - inner)


def mended(truth: list[tuple[Box, int]], found: list[Found], kind: str) -> tuple[list[tuple[Box, int]], list[Found]]:
    """An image with one kind of mistake undone, one prediction after the other, as the paper says."""
    finder: dict[int, Found] = {}  # the detection that found each box
    wrong: list[tuple[Found, str, int]] = []
    for each in sorted(found, key=lambda each: -each[2]):
        box, label, _ = each
        ious = [iou_of(box, other) for other, _ in truth]
        own = {i: ious[i] for i, (_, k) in enumerate(truth) if k == label}
        others = {i: ious[i] for i, (_, k) in enumerate(truth) if k != label}
        free = {i: iou for i, iou in own.items() if i not in finder and iou >= 0.5}
        if free:
            finder[max(free, key=free.__getitem__)] = each
        elif 0.1 <= max(own.values(), default=0) < 0.5:
            wrong.append((each, "localization", max(own, key=own.__getitem__)))
        elif max(others.values(), default=0) >= 0.5:
            wrong.append((each, "classification", max(others, key=others.__getitem__)))
        elif max(own.values(), default=0) >= 0.5:
            wrong.append((each, "duplicate", -1))
        else:
            wrong.append((each, "background" if max(ious, default=0) < 0.1 else "both", -1))
    nearly = {i for _, _, i in wrong}
    unfound = [i for i in range(len(truth)) if i not in finder]
    if kind == "missed":
        return [each for i, each in enumerate(truth) if i not in unfound or i in nearly], found
    if kind == "false_negatives":
        return [each for i, each in enumerate(truth) if i in finder], found
    stays = [each for each, why, _ in wrong if why != kind and kind != "false_positives"]
    for (box, label, score), why, i in wrong:
        if why == kind and i >= 0:
            corrected = (box, truth[i][1], score) if kind == "classification" else (truth[i][0], label, score)
            if i not in finder or finder[i][2] < score:
                finder[i] = corrected
    return truth, [*stays, *finder.values()]


@pytest.mark.parametrize("seed", range(6))
def test_what_is_lost_by_kind_is_what_mending_wins(seed: int) -> None:
    images = random_images(seed)
    analysis = analysis_of(images)
    lost = {loss.kind: loss.ap_lost for loss in analysis.lost}
    assert set(lost) == {*KINDS, "false_positives", "false_negatives"}
    for kind, won in lost.items():
        after = evaluator_of([mended(truth, found, kind) for truth, found in images]).compute()
        assert won == pytest.approx(after.ap50 - analysis.metrics.ap50, abs=1e-9), kind
    assert sum(value > 0.003 for value in lost.values()) >= 6, "the images have mistakes of all kinds"


def test_the_more_confident_takes_an_object_when_classes_are_corrected() -> None:
    """Two cats, one found at 0.3. A dog at 0.9 there, corrected, takes its place; one at 0.2 is dropped.

    Right at 0.3 behind a cat at 0.6 in the background: precision 1/2 up to a recall of 1/2. With the dog at 0.9 in its
    place the precision is 1. 51 of 101 recalls are at most 1/2.
    """
    truth = [(BOX, 0), (FAR, 0)]
    nothing: list[Found] = [((60, 60, 80, 80), 0, 0.6), (BOX, 0, 0.3)]
    for score, gain in ((0.9, 51 / 101 / 2), (0.2, 0)):
        analysis = analysis_of([(truth, [*nothing, (BOX, 1, score)])])
        assert analysis.metrics.ap50 == pytest.approx(51 / 101 / 2)
        assert analysis.lost[0].kind == "classification"
        assert analysis.lost[0].ap_lost == pytest.approx(gain, abs=1e-9)


def test_where_nothing_is_found_everything_is_missed() -> None:
    analysis = analysis_of([([(BOX, 0), (FAR, 1)], [])])
    lost = {loss.kind: (loss.ap_lost, loss.num) for loss in analysis.lost}
    assert lost.pop("missed") == lost.pop("false_negatives") == (1, 2)
    assert set(lost.values()) == {(0, 0)}
    assert (analysis.confidence, analysis.thresholds, analysis.confusion_confidence) == (None, {}, 0.5)


def test_where_there_is_nothing_nothing_is_lost() -> None:
    content = analysis_of([([], [(BOX, 0, 0.9)])]).to_dict()
    assert [(each["ap_lost"], each["num"]) for each in content["lost"]] == [
        (None, 0), (None, 0), (None, 0), (None, 0), (None, 1), (None, 0), (None, 1), (None, 0),
    ]  # fmt: skip
    assert content["by_objects"] == []
    assert [each["ap"] for each in content["by_class"]] == [None] * 3


def test_mistakes_are_counted_at_the_best_threshold() -> None:
    """F1 is 1 from 0.201 to 0.8, so the threshold is in the middle, which leaves out both mistakes at 0.2."""
    analysis = analysis_of([([(BOX, 0)], [(BOX, 0, 0.8), (FAR, 0, 0.2), (BOX, 1, 0.2)])])
    assert analysis.confidence == 0.501
    assert [loss.num for loss in analysis.lost] == [0] * 8
    sure = analysis_of([([(BOX, 0), (FAR, 0)], [(BOX, 0, 0.8), (BOX, 1, 0.9), (LOOSE, 2, 0.9)])])
    assert {loss.kind: loss.num for loss in sure.lost if loss.num} == {
        "classification": 1, "both": 1, "missed": 1, "false_positives": 2, "false_negatives": 1
    }  # fmt: skip


def test_calibration_of_a_small_case() -> None:
    """0.72 and 0.78, one right: confidence 0.75, precision 0.5. 0.95 and 1, both right. 0.06, wrong. 0.04: left out.

    ECE: (2 · 0.25 + 2 · 0.025 + 1 · 0.06) / 5 = 0.122.
    """
    scores = np.array([0.72, 0.78, 0.95, 1.0, 0.06, 0.04], np.float32)
    bins, ece = calibrate(scores, np.array([True, False, True, True, False, True]))
    assert [each.num for each in bins] == [1, 0, 0, 0, 0, 0, 0, 2, 0, 2]
    assert (bins[0].low, bins[0].high, bins[7].low, bins[9].high) == (0.05, 0.1, 0.7, 1)
    assert bins[7][3:] == pytest.approx((0.75, 0.5))
    assert bins[9][3:] == pytest.approx((0.975, 1))
    assert bins[1][3:] == (None, None)
    assert ece == pytest.approx(0.122, abs=1e-6)
    assert calibrate(scores[5:], np.array([True])).ece is None
    border = calibrate(np.array([0.1, 0.7, 0.3], np.float32), np.ones(3, bool)).bins
    assert [i for i, each in enumerate(border) if each.num] == [1, 3, 7], "a bin includes its lower end"


def test_by_class_size_and_number_of_objects() -> None:
    tiny, large = (0, 0, 32, 32), (0, 0, 150, 150)
    images = [
        ([(tiny, 0)], [(tiny, 0, 0.9)]),
        ([(BOX, 1), (FAR, 1)], [(BOX, 1, 0.8)]),
        ([(BOX, 1), (FAR, 0), (large, 0)], [(BOX, 0, 0.7)]),
        ([], [(BOX, 0, 0.1)]),
        ([(shifted(10 * i), 0) for i in range(8)], []),
    ]
    analysis = analysis_of(images)
    assert [(each.name, each.num_boxes, each.num_images) for each in analysis.by_class] == [
        ("cat", 11, 3), ("dog", 3, 2), ("bird", 0, 0)
    ]  # fmt: skip
    assert analysis.by_class[1].ap50 == pytest.approx(34 / 101)
    assert analysis.by_class[1][5:] == (0.4, 1, pytest.approx(1 / 3), 0.5)
    assert analysis.by_class[2][5:] == (None, None, None, None)
    assert [(each.name, each.num_boxes) for each in analysis.by_size] == [("small", 1), ("medium", 13), ("large", 1)]
    assert [each[:3] for each in analysis.by_objects] == [(1, 1, 1), (2, 3, 2), (8, 15, 1)]
    for group, chosen in zip(analysis.by_objects, ([0], [1, 2], [4]), strict=True):
        assert group.ap == pytest.approx(evaluator_of([images[i] for i in chosen]).compute().ap, abs=1e-9)
    assert analysis.thresholds == {
        "cat": analysis.by_class[0].confidence, "dog": 0.4, "bird": analysis.confidence
    }  # fmt: skip


def test_galleries_show_what_they_promise() -> None:
    """Quality: image 0 has 1; image 1, IoU 38/42 of one found and one missed; image 2 nothing but mistakes."""
    images = [
        ([(BOX, 0), (FAR, 1)], [(BOX, 0, 0.9), (FAR, 1, 0.9)]),
        ([(BOX, 0), (FAR, 1)], [(shifted(2), 0, 0.6)]),
        ([(BOX, 0)], [(BOX, 2, 0.8), (FAR, 2, 0.7)]),
        ([], []),
    ]
    evaluator = evaluator_of(images)
    analysis = analyze(evaluator.records, evaluator.detections, CLASSES, evaluator.compute())
    galleries = analysis.galleries
    assert [(each.file, each.detail) for each in galleries.best] == [
        ("0.jpg", "2 found, 0 missed, 0 wrong"), ("1.jpg", "1 found, 1 missed, 0 wrong")
    ]  # fmt: skip
    assert [each.score for each in galleries.best] == pytest.approx([1, 38 / 42 / 1.5])
    assert [(each.image_index, each.score) for each in galleries.worst] == [(2, 0)]
    for gallery, image in ((galleries.missed, 1), (galleries.confused, 2), (galleries.false, 2)):
        assert [each.image_index for each in gallery] == [image]


def test_an_example_has_the_boxes_to_draw() -> None:
    found: list[Found] = [(BOX, 1, 0.8), (FAR, 2, 0.7), ((60, 0, 90, 30), 2, 0.75)]
    analysis = analysis_of([([(BOX, 0)], found), ([(FAR, 1)], [(FAR, 1, 0.7)])])
    assert analysis.confidence == 0.35
    false, confused = analysis.galleries.false[0], analysis.galleries.confused[0]
    assert (false.detail, false.score) == ("bird 0.75: nothing there", 0.75)
    assert [box for box in false.boxes if box.is_marked] == [("found", "bird", (60, 0, 90, 30), 0.75, True)]
    assert (confused.detail, confused.score) == ("cat taken for dog 0.80", pytest.approx(0.8))
    assert [box[:2] for box in confused.boxes if box.is_marked] == [("truth", "cat"), ("found", "dog")]
    assert len(confused.boxes) == 4
    assert analysis.galleries.missed == (), "with its class corrected, the cat would be found"


def test_a_gallery_ends_and_shows_an_image_once() -> None:
    """Twenty images with one right and two wrong detections and two missed boxes, the larger first, and a good one."""
    truth = [(BOX, 0), ((0, 60, 40, 90), 0), ((0, 60, 90, 150), 0)]
    images = [(truth, [(BOX, 0, 0.4), (FAR, 0, 0.5 + i / 100), (FAR, 1, 0.45)]) for i in range(20)]
    galleries = analysis_of([*images, ([(BOX, 0)], [(BOX, 0, 0.9)])]).galleries
    assert [each.image_index for each in galleries.false] == list(range(19, 7, -1))
    assert [each.image_index for each in galleries.missed] == list(range(12))
    assert [box.xyxy for each in galleries.missed for box in each.boxes if box.is_marked] == [(0, 60, 90, 150)] * 12
    assert [each.image_index for each in galleries.best] == [20, *range(10)], "half of the images"
    assert [each.image_index for each in galleries.worst] == list(range(10, 20))


def test_the_dictionary_is_json() -> None:
    analysis = analysis_of(random_images(0))

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    content = json.loads(json.dumps(analysis.to_dict()), parse_constant=refuse)
    assert content == analysis.to_dict()
    assert list(content) == [
        "metrics", "by_class", "by_size", "by_objects", "curves", "confidence", "thresholds", "confusion", "lost",
        "calibration", "ece", "galleries",
    ]  # fmt: skip
    curves = content["curves"]
    assert len(curves["recalls"]) == len(curves["confidences"]) == len(curves["f1"]["cat"]) == 101
    assert curves["confidences"][1] == 0.01
    assert curves["f1"]["dog"][40] == pytest.approx(analysis.curves.f1[1, 400], abs=1e-5)
    ap50 = [content["metrics"]["per_class_ap50"][name] for name in NAMES]
    assert [np.mean(curves["precision_at_recall"][name]) for name in NAMES] == pytest.approx(ap50, abs=1e-4)
    example = content["galleries"]["best"][0]
    assert example.keys() == {"image_index", "file", "size_hw", "score", "detail", "boxes"}
    assert example["size_hw"] == [200, 200]
