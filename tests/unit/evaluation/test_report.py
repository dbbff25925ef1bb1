"""Curves and confusion on boxes one can follow by hand, and the files of the report."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from matplotlib.figure import Figure

from rtdetrv4.data.records import Record
from rtdetrv4.evaluation import CocoEvaluator, ImageDetections, write_report
from rtdetrv4.evaluation.matching import find_overlaps, match
from rtdetrv4.evaluation.operating_curves import best_confidence, confusion_matrix, operating_curves
from rtdetrv4.evaluation.report import draw_confusion_matrix, draw_f1_confidence, draw_precision_recall
from rtdetrv4.types import ClassMap, ImageInfo

PICTURES = ("confusion_matrix.png", "f1_confidence.png", "precision_recall.png")


def make_record(
    boxes: list[list[float]], labels: list[int], crowd: list[bool] | None = None, image_id: int = 1
) -> Record:
    array = np.array(boxes, dtype=np.float32).reshape(-1, 4)
    is_crowd = np.array(crowd or [False] * len(labels), dtype=bool)
    areas = (array[:, 2:] - array[:, :2]).prod(axis=1).astype(np.float64)
    return Record(ImageInfo(image_id, "a.jpg", 200, 200), array, np.array(labels, dtype=np.int64), is_crowd, areas)


def make_found(boxes: list[list[float]], scores: list[float], labels: list[int]) -> ImageDetections:
    return ImageDetections(
        np.array(boxes, dtype=np.float32).reshape(-1, 4),
        np.array(scores, dtype=np.float32),
        np.array(labels, dtype=np.int64),
    )


LEFT, RIGHT, LOW, FAR = [0, 0, 40, 40], [60, 0, 100, 40], [0, 60, 40, 100], [150, 150, 190, 190]


def random_evaluator(num_classes: int, num_images: int = 20, seed: int = 0) -> CocoEvaluator:
    rng = np.random.default_rng(seed)
    records, states = [], {}
    for image_id in range(num_images):
        num = int(rng.integers(0, 9))
        corner = rng.uniform(0, 150, (num, 2))
        boxes = np.concatenate([corner, corner + rng.uniform(5, 90, (num, 2))], axis=1)
        labels = rng.integers(0, num_classes, num)
        records.append(make_record(boxes.tolist(), labels.tolist(), (rng.random(num) < 0.1).tolist(), image_id))
        moved = np.repeat(boxes, 3, axis=0) + rng.normal(0, 4, (3 * num, 4))
        moved[:, 2:] = np.maximum(moved[:, 2:], moved[:, :2] + 1)
        guesses = np.where(rng.random(3 * num) < 0.7, np.repeat(labels, 3), rng.integers(0, num_classes, 3 * num))
        states[image_id] = make_found(moved.tolist(), np.sort(rng.random(3 * num))[::-1].tolist(), guesses.tolist())
    names = tuple(f"class number {k}" for k in range(num_classes))
    evaluator = CocoEvaluator(records, ClassMap(names, tuple(range(num_classes))))
    evaluator.merge([states])
    return evaluator


def test_detections_take_the_free_box_they_overlap_most_by_descending_score() -> None:
    truth = make_record([LEFT, [0, 0, 40, 36]], [0, 0])
    found = make_found([LEFT, LEFT, LEFT, FAR], [0.7, 0.9, 0.8, 0.6], [0, 0, 0, 0])
    assert match(find_overlaps([truth], [found]))[:, 0].tolist() == [-1, 0, 1, -1]


def test_detections_in_a_crowd_of_their_class_are_set_aside() -> None:
    truth = make_record([[0, 0, 100, 100], LEFT], [0, 1], [True, False])
    found = make_found([RIGHT, LEFT, LEFT, RIGHT], [0.9, 0.8, 0.7, 0.6], [0, 0, 1, 1])
    assert match(find_overlaps([truth], [found]))[:, 0].tolist() == [-2, -2, 1, -1]
    assert match(find_overlaps([truth], [found]), same_class=False)[:, 0].tolist() == [-2, 1, -1, -1]


def test_operating_curves_of_a_small_case() -> None:
    """Two boxes of class 0; found: right at 0.9, wrong at 0.6, right at 0.3. Class 1 has no box."""
    truth = make_record([LEFT, RIGHT], [0, 0])
    found = make_found([LEFT, FAR, RIGHT, FAR], [0.9, 0.6, 0.3, 0.5], [0, 0, 0, 1])
    curves = operating_curves(find_overlaps([truth], [found]), 2)
    at = [300, 301, 600, 601, 900, 901]
    assert curves.precision[0, at] == pytest.approx([2 / 3, 1 / 2, 1 / 2, 1, 1, np.nan], nan_ok=True)
    assert curves.recall[0, at] == pytest.approx([1, 0.5, 0.5, 0.5, 0.5, 0])
    assert curves.f1[0, at] == pytest.approx([0.8, 0.5, 0.5, 2 / 3, 2 / 3, 0])
    assert curves.precision_at_recall[0, [0, 50, 51, 100]] == pytest.approx([1, 1, 2 / 3, 2 / 3])
    assert curves.num_boxes.tolist() == [2, 0]
    assert all(np.isnan(rows[1]).all() for rows in curves[:4])
    assert best_confidence(curves.f1[0]) == 0.15
    assert best_confidence(curves.f1[1]) is None


def test_best_confidence_is_the_middle_of_the_first_plateau() -> None:
    f1 = np.zeros(1001)
    assert best_confidence(f1) is None
    f1[200:301] = 0.7
    f1[400:900] = 0.7
    assert best_confidence(f1) == 0.25


def test_mean_precision_over_recalls_is_ap50() -> None:
    evaluator = random_evaluator(3)
    curves = operating_curves(find_overlaps(evaluator.records, evaluator.detections), 3)
    ap50 = list(evaluator.compute().per_class_ap50.values())
    np.testing.assert_allclose(curves.precision_at_recall.mean(axis=1), ap50, rtol=0, atol=1e-9)


def test_confusion_matrix_of_a_small_case() -> None:
    """Right, taken for another class, missed, invented, too unsure, and in a crowd."""
    truth = make_record([LEFT, RIGHT, LOW, [100, 100, 200, 200]], [0, 1, 1, 0], [False, False, False, True])
    found = make_found([LEFT, RIGHT, [60, 60, 90, 90], LOW, FAR], [0.9, 0.8, 0.7, 0.3, 0.6], [0, 0, 1, 1, 0])

    def counts(truth: Record, found: ImageDetections) -> list[list[int]]:
        return confusion_matrix(find_overlaps([truth], [found]), 2, confidence=0.5).tolist()

    assert counts(truth, found) == [[1, 0, 0], [1, 0, 1], [0, 1, 0]]
    assert counts(truth, make_found([], [], [])) == [[0, 0, 1], [0, 0, 2], [0, 0, 0]]
    assert counts(make_record([], []), found) == [[0, 0, 0], [0, 0, 0], [3, 1, 0]]


def read_strictly(path: Path) -> dict:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)


def test_report_files_tell_the_same_as_the_metrics(tmp_path: Path) -> None:
    evaluator = random_evaluator(3)
    metrics = evaluator.compute()
    content = write_report(evaluator, tmp_path / "new" / "folder", metrics)
    written = read_strictly(tmp_path / "new" / "folder" / "metrics.json")
    assert written == content
    assert written["ap"] == metrics.ap
    assert set(written["classes"]) == set(evaluator.classes.names)
    for point in written["classes"].values():
        assert 0 < point["confidence"] < 1
        assert point["f1"] == pytest.approx(2 / (1 / point["precision"] + 1 / point["recall"]))
    for name in PICTURES:
        picture = cv2.imread(str(tmp_path / "new" / "folder" / name))
        assert picture is not None
        assert min(picture.shape[:2]) > 400
        assert picture.std() > 5  # not blank


def test_legends_tell_quality_threshold_and_name() -> None:
    """As they are written, though matplotlib hides labels that begin with an underscore."""
    truth = make_record([LEFT, RIGHT, LOW], [0, 0, 1])
    found = make_found([LEFT, FAR, RIGHT, LOW], [0.9, 0.6, 0.3, 0.5], [0, 0, 0, 1])
    curves = operating_curves(find_overlaps([truth], [found]), 3)

    def legend(figure: Figure) -> list[str]:
        return [text.get_text() for text in figure.axes[0].get_legend().get_texts()]

    names = ("_$x$", "dog", "no boxes")
    assert legend(draw_f1_confidence(curves, names)) == [
        "0.90  at 0.15  mean", "1.00  at 0.25  dog", "0.80  at 0.15  _$x$",
    ]  # fmt: skip
    assert legend(draw_precision_recall(curves, names)) == ["0.92  mean", "1.00  dog", "0.83  _$x$"]


@pytest.mark.parametrize(
    ("names", "boxes"),
    [
        pytest.param(("cell",), [LEFT, RIGHT], id="one class"),
        pytest.param(("cell", "other"), [], id="no boxes at all"),
        pytest.param(
            ("$a_{b$", "_hidden", "never", "细胞"), [LEFT, RIGHT, LOW, FAR], id="names that matplotlib parses"
        ),
        pytest.param(tuple(f"a rather long class name {k}" for k in range(80)), [LEFT, RIGHT], id="80 classes"),
    ],
)
def test_report_of_unusual_data(
    names: tuple[str, ...], boxes: list[list[float]], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    labels = [0, 0, 1, 3][: len(boxes)] if len(names) < 80 else [78, 79]
    evaluator = CocoEvaluator([make_record(boxes, labels)], ClassMap(names, tuple(range(len(names)))))
    evaluator.merge([{1: make_found(boxes, [0.9, 0.8, 0.7, 0.6][: len(boxes)], labels)}])
    write_report(evaluator, tmp_path)
    written = read_strictly(tmp_path / "metrics.json")
    for k, name in enumerate(names):
        point = written["classes"][name]
        assert point["num_boxes"] == labels.count(k)
        assert (
            (point["f1"] == 1) if k in labels else all(point[key] is None for key in ("confidence", "precision", "f1"))
        )
    assert (written["confidence"] is None) == (not boxes)
    assert all((tmp_path / name).stat().st_size > 5000 for name in PICTURES)
    assert capfd.readouterr() == ("", "")


def test_of_many_classes_those_with_the_most_mistakes_are_drawn() -> None:
    """The shares are of all boxes of a class, also of those that were found as a class that is not shown."""
    counts = np.diag(np.full(501, 7))
    counts[-1, -1] = 0
    counts[3, 400], counts[499, 3], counts[8, 500], counts[500, 9] = 21, 5, 3, 2
    figure = draw_confusion_matrix(counts, [f"class {k}" for k in range(500)], 0.5)
    axes, *_ = figure.axes
    shown = [label.get_text() for label in axes.get_yticklabels()]
    assert len(shown) == 61
    assert {"class 3", "class 8", "class 9", "class 400", "class 499", "no box"} <= set(shown)
    assert "the 60 of 500 classes with the most mistakes" in axes.get_title(loc="left")
    share = np.asarray(axes.images[0].get_array())
    assert share[shown.index("class 3"), shown.index("class 400")] == pytest.approx(21 / 28)
    assert share[-1, shown.index("class 9")] == pytest.approx(2 / 9)
    assert max(figure.get_size_inches()) < 20
