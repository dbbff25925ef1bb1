"""The comparison of two lists of detections: strict, but for what rounding may do."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from rtdetrv4.errors import ExportError
from rtdetrv4.export import verify_onnx
from rtdetrv4.export.verify import Listed, compare

from .conftest import Exported


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


def edited(exported: Exported, folder: Path, name: str, factor: float) -> Path:
    """A copy of the file in which a weight of the exported network has changed."""
    graph = onnx.load(exported.path)
    for tensor in graph.graph.initializer:
        if tensor.name == name:
            tensor.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor) * np.float32(factor), name))
            break
    else:
        raise AssertionError(f"no {name} among {[tensor.name for tensor in graph.graph.initializer]}")
    onnx.save(graph, folder / "edited.onnx")
    return folder / "edited.onnx"


def test_a_changed_weight_is_noticed(square: Exported, tmp_path: Path) -> None:
    name = "detector.query_selection.norm.weight"
    assert verify_onnx(edited(square, tmp_path, name, 1.0), square.model).agrees
    with pytest.raises(ExportError, match=r"does not agree with PyTorch.*edited\.parity\.json"):
        verify_onnx(edited(square, tmp_path, name, 1.02), square.model)


def test_what_onnxruntime_cannot_read(tmp_path: Path, square: Exported) -> None:
    (tmp_path / "m.onnx").write_bytes(square.path.read_bytes()[:1000])
    with pytest.raises(ExportError, match=r"onnxruntime cannot load .*m\.onnx"):
        verify_onnx(tmp_path / "m.onnx", square.model)
