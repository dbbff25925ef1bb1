"""The comparison of two lists of detections: strict, but for what rounding may do."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from rtdetrv4.runtime.agreement import Listed, compare, list_detections, list_outputs, match
from rtdetrv4.runtime.export_metadata import ExportMetadata


def detections(num: int = 50, seed: int = 0) -> Listed:
    """Detections with scores well apart."""
    rng = np.random.default_rng(seed)
    scores = np.linspace(0.9, 0.1, num, dtype=np.float32)[:, None]
    return Listed(scores, rng.integers(0, 80, num), rng.uniform(0, 640, (num, 4)).astype(np.float32))


def changed(listed: Listed, **parts: np.ndarray) -> Listed:
    return listed._replace(**parts)


def test_equal_lists() -> None:
    assert compare(detections(), detections()) == (0, 0, 0, 0)


def test_rounding_is_measured() -> None:
    a = detections()
    b = changed(a, boxes_xyxy_px=a.boxes_xyxy_px + 0.25, scores=a.scores - 0.0005)
    result = compare(a, b)
    assert result.max_box_px == pytest.approx(0.25, rel=1e-3)
    assert result.max_score == pytest.approx(0.0005, rel=1e-3)
    assert (result.num_moved, result.num_lost) == (0, 0)


def test_nearly_tied_neighbors_may_change_places() -> None:
    a = detections()
    a.scores[[20, 21, 22]] = [[0.5], [0.5], [0.49999]]
    order = np.arange(50)
    order[[20, 21, 22]] = [22, 20, 21]
    b = Listed(a.scores, a.labels[order], a.boxes_xyxy_px[order])
    assert compare(a, b)[2:] == (3, 0)


def test_others_may_not() -> None:
    a = detections()
    order = np.arange(50)
    order[[20, 21]] = [21, 20]
    b = Listed(a.scores, a.labels[order], a.boxes_xyxy_px[order])
    assert compare(a, b).num_lost == 2


@pytest.mark.parametrize("row", [0, 25, 48])
def test_one_wrong_detection_is_enough(row: int) -> None:
    a = detections()
    labels, boxes, scores = a.labels.copy(), a.boxes_xyxy_px.copy(), a.scores.copy()
    labels[row] += 1
    boxes[row, 2] += 0.6
    scores[row] -= 0.0011
    assert compare(a, changed(a, labels=labels)).num_lost == 1
    assert compare(a, changed(a, boxes_xyxy_px=boxes)).num_lost == 1
    assert compare(a, changed(a, scores=scores)).num_lost == 1


def test_a_missing_detection_is_noticed() -> None:
    a = detections(51)
    first, others = np.arange(50), np.delete(np.arange(51), 10)
    assert compare(Listed(*(part[first] for part in a)), Listed(*(part[others] for part in a))).num_lost == 40


def test_the_order_counts() -> None:
    a = detections(50)
    assert compare(a, Listed(*(part[::-1] for part in a))).num_lost == 50


def test_a_tie_at_the_end_decides_who_is_still_listed() -> None:
    a = detections()
    a.scores[-2:] = 0.1
    b = Listed(a.scores.copy(), a.labels.copy(), a.boxes_xyxy_px.copy())
    b.boxes_xyxy_px[-1] += 300
    assert compare(a, b).num_lost == 0
    b.boxes_xyxy_px[-3] += 300
    assert compare(a, b).num_lost == 1


def test_queries_are_never_excused() -> None:
    rng = np.random.default_rng(0)
    a = Listed(rng.random((20, 3)), np.zeros(20, dtype=int), rng.uniform(0, 640, (20, 4)))
    order = rng.permutation(20)
    moved = Listed(a.scores[order], a.labels, a.boxes_xyxy_px[order])
    assert compare(a, moved)[:2] == (0, 0)
    assert compare(a, moved).num_lost == 0
    moved.scores[-1, 2] += 0.01
    assert compare(a, moved).num_lost == 1


@pytest.mark.parametrize("part", ["scores", "boxes_xyxy_px"])
def test_nan_agrees_with_nothing(part: str) -> None:
    a, b = detections(), detections()
    getattr(b, part)[:] = np.nan
    assert compare(a, b).num_lost >= 49


METADATA = ExportMetadata(
    model="test", names=("a", "b"), category_ids=(0, 1), image_size=(50, 100), outputs="postprocessed", version="0"
)


def test_raw_queries_are_listed_as_detections() -> None:
    """Two queries: boxes in the middle of an input of 50 × 100 pixels, logits of 0, ±2 and -2.5."""
    outputs = {
        "logits": np.array([[[0.0, -2.5], [-2.0, 2.0]]], dtype=np.float32),
        "boxes": np.array([[[0.5, 0.5, 0.2, 0.4], [0.5, 0.5, 0.1, 0.2]]], dtype=np.float32),
    }
    raw = METADATA._replace(outputs="raw")
    (queries,) = list_outputs(outputs, raw)
    np.testing.assert_allclose(queries.scores, [[0.5, 0.0759], [0.1192, 0.8808]], atol=1e-4)
    np.testing.assert_allclose(queries.boxes_xyxy_px, [[40, 15, 60, 35], [45, 20, 55, 30]], atol=1e-4)
    (found,) = list_detections(outputs, raw)
    assert found.labels.tolist() == [1, 0, 0, 1]
    np.testing.assert_allclose(found.scores[:, 0], [0.8808, 0.5, 0.1192, 0.0759], atol=1e-4)
    np.testing.assert_allclose(found.boxes_xyxy_px[0], [45, 20, 55, 30], atol=1e-4)


def confident(num: int = 10) -> Listed:
    """Boxes of 100 × 100 pixels far apart, with scores from 0.9 down to 0.3."""
    left = 200.0 * np.arange(num)[:, None]
    boxes = np.concatenate([left, np.zeros((num, 1)), left + 100, np.full((num, 1), 100.0)], axis=1)
    return Listed(np.linspace(0.9, 0.3, num)[:, None], np.arange(num) % 2, boxes)


def test_every_confident_detection_matches_itself() -> None:
    assert match([confident()] * 2, [confident()] * 2)[:2] == (40, 40)
    assert match([confident()], [confident()]).share == 1


@pytest.mark.parametrize(
    ("change", "num"),
    [
        (lambda one: one._replace(labels=1 - one.labels), 0),
        (lambda one: one._replace(boxes_xyxy_px=one.boxes_xyxy_px + np.array([2, 0, 2, 0])), 20),  # IoU 98 / 102
        (lambda one: one._replace(boxes_xyxy_px=one.boxes_xyxy_px + np.array([3, 0, 3, 0])), 0),  # IoU 97 / 103
        (lambda one: one._replace(scores=one.scores - 0.04), 20),
        (lambda one: one._replace(scores=one.scores - 0.11), 0),
        (lambda one: Listed(*(part[1:] for part in one)), 18),  # of 10 + 9
        (lambda one: one._replace(boxes_xyxy_px=np.full_like(one.boxes_xyxy_px, np.nan)), 0),
    ],
)
def test_the_same_object_has_the_same_class_box_and_about_the_same_score(
    change: Callable[[Listed], Listed], num: int
) -> None:
    assert match([confident()], [change(confident())]).num == num


def test_differences_are_those_of_matched_detections() -> None:
    moved = confident()
    moved.boxes_xyxy_px[3] += [1, 0, 0, 0]
    moved.boxes_xyxy_px[4] += [50, 0, 0, 0]  # no match
    moved.scores[5] -= 0.02
    assert match([confident()], [moved]) == pytest.approx((18, 20, 1, 0.02))


def test_what_only_one_finds_counts_against_both() -> None:
    assert match([confident(10)], [confident(6)._replace(scores=confident(10).scores[:6])])[:2] == (12, 16)


def test_without_confident_detections_the_best_are_compared() -> None:
    unsure = confident(50)._replace(scores=np.linspace(0.2, 0.1, 50)[:, None])
    assert match([unsure], [unsure])[:2] == (20, 20)
    assert match([], []).share is None
