"""Lines of YOLO label files: boxes, polygons, key points, and what tools write besides."""

from __future__ import annotations

import codecs
from pathlib import Path

import numpy as np
import pytest

from rtdetrv4.data.yolo_labels import Labels, read_label_files
from rtdetrv4.errors import DatasetError

NAMES = {0: "cat", 1: "dog"}
BOXES = np.array(
    [[0.5, 0.5, 0.4, 0.6], [0.2, 0.3, 0.2, 0.2], [0.7, 0.8, 0.3, 0.3], [0.4, 0.4, 0.1, 0.5], [0.6, 0.2, 0.7, 0.3]]
)
"""Centers and sides."""
EXPECTED = np.concatenate([BOXES[:, :2] - BOXES[:, 2:] / 2, BOXES[:, 2:]], axis=1)
SQUARE = [0.1, 0.1, 0.3, 0.1, 0.3, 0.4, 0.1, 0.4]


def read(folder: Path, rows: list[list[float]], keypoints: tuple[int, int] | None = None) -> Labels:
    file = folder / "a.txt"
    file.write_text("\n".join(" ".join(map(str, [0, *row])) for row in rows))
    return read_label_files([None, file], NAMES, keypoints)


def poses(size: int, number: int = 3) -> list[list[float]]:
    """Boxes, each with key points in it; the first point is not annotated."""
    rng = np.random.default_rng(size)
    rows = []
    for box in BOXES:
        points = np.ones((number, size))
        points[:, :2] = box[:2] + (rng.random((number, 2)) - 0.5) * box[2:]
        points[0] = 0
        rows.append([*box.tolist(), *points.ravel().tolist()])
    return rows


def test_boxes_files_and_lines(tmp_path: Path) -> None:
    labels = read(tmp_path, BOXES.tolist())
    np.testing.assert_allclose(labels.boxes_xywh, EXPECTED, atol=1e-9)
    assert labels.file_index.tolist() == [1] * 5
    assert labels.where[2] == "a.txt:3"
    assert labels.class_ids.tolist() == [0] * 5
    assert labels.problems == ()


@pytest.mark.parametrize("number", [3, 4])
@pytest.mark.parametrize("size", [2, 3])
def test_key_points_are_left_out(tmp_path: Path, size: int, number: int) -> None:
    told = "5 lines are taken as a box with key points: "
    labels = read(tmp_path, poses(size, number))
    np.testing.assert_allclose(labels.boxes_xywh, EXPECTED, atol=1e-9)
    assert labels.problems == (f"{told}the key points lie in their boxes",)
    # As in a YAML file, even if they lie elsewhere.
    far = [[*box.tolist(), *[0.9] * (number * size)] for box in BOXES]
    labels = read(tmp_path, far, (number, size))
    np.testing.assert_allclose(labels.boxes_xywh, EXPECTED, atol=1e-9)
    assert labels.problems == (f"{told}kpt_shape says so",)


def test_boxes_and_key_points_in_one_file(tmp_path: Path) -> None:
    labels = read(tmp_path, [*poses(3), BOXES[0].tolist()])
    np.testing.assert_allclose(labels.boxes_xywh, [*EXPECTED, EXPECTED[0]], atol=1e-9)


@pytest.mark.parametrize("keypoints", [None, (17, 3)])
def test_polygons_stay_polygons(tmp_path: Path, keypoints: tuple[int, int] | None) -> None:
    rng = np.random.default_rng(3)
    corners = [(center + (rng.random((4, 2)) - 0.5) * 0.2).clip(0, 1) for center in rng.random((20, 2))]
    labels = read(tmp_path, [SQUARE, *(each.ravel().tolist() for each in corners)], keypoints)
    np.testing.assert_allclose(labels.boxes_xywh[0], [0.1, 0.1, 0.2, 0.3])
    for box, each in zip(labels.boxes_xywh[1:], corners, strict=True):
        np.testing.assert_allclose(box, [*each.min(axis=0), *np.ptp(each, axis=0)], atol=1e-9)
    assert labels.problems == ("21 polygons or rotated boxes replaced by the upright boxes around them",)


def test_rotated_boxes_are_no_key_points(tmp_path: Path) -> None:
    """Four corners in the middle of the image would pass for a box that holds two points."""
    rng = np.random.default_rng(0)
    corners = []
    for center, (long, short), angle in zip(
        rng.uniform(0.35, 0.55, (20, 2)), rng.uniform(0.03, 0.12, (20, 2)), rng.uniform(0, np.pi, 20), strict=True
    ):
        along = np.array([np.cos(angle), np.sin(angle)]) * long / 2
        across = np.array([-np.sin(angle), np.cos(angle)]) * short / 2
        corners.append((center + np.stack([along + across, along - across, -along - across, across - along])).round(4))
    corners[3][2] += 0.01  # drawn by hand
    labels = read(tmp_path, [each.ravel().tolist() for each in corners])
    for box, each in zip(labels.boxes_xywh, corners, strict=True):
        np.testing.assert_allclose(box, [*each.min(axis=0), *np.ptp(each, axis=0)], atol=1e-9)
    assert labels.problems == ("20 polygons or rotated boxes replaced by the upright boxes around them",)
    labels = read(tmp_path, poses(2, 2))
    assert labels.problems == ("5 lines are taken as a box with key points: the key points lie in their boxes",)


def test_polygons_of_various_lengths(tmp_path: Path) -> None:
    labels = read(tmp_path, [SQUARE, [*SQUARE, 0.05, 0.2], SQUARE[:6]])
    np.testing.assert_allclose(labels.boxes_xywh, [[0.1, 0.1, 0.2, 0.3], [0.05, 0.1, 0.25, 0.3], [0.1, 0.1, 0.2, 0.3]])


def test_predictions_with_confidence(tmp_path: Path) -> None:
    labels = read(tmp_path, [[*box, 0.87] for box in BOXES.tolist()])
    np.testing.assert_allclose(labels.boxes_xywh, EXPECTED, atol=1e-9)
    assert labels.problems == ("every line ends with a confidence, as predictions do; it is ignored",)


def test_byte_order_marks_carriage_returns_and_empty_lines(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    content = "1 0.5 0.5 0.4 0.6\r\n\r\n0\t0.5 0.5 0.4 0.6 \r\n"
    for data in (
        content.encode(),
        codecs.BOM_UTF8 + content.encode(),
        codecs.BOM_UTF16_LE + content.encode("utf-16-le"),
        codecs.BOM_UTF16_BE + content.encode("utf-16-be"),
    ):
        file.write_bytes(data)
        labels = read_label_files([file], NAMES)
        assert labels.class_ids.tolist() == [1, 0]
        assert labels.where == ["a.txt:1", "a.txt:3"]
        np.testing.assert_allclose(labels.boxes_xywh, [EXPECTED[0]] * 2)


def test_lines_that_are_no_box(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("0 0.5 0.5 0.4\n0\n0 0.5 nan 0.1 0.1\n0 0.5 1e999 0.1 0.1\n0 a b c d\n0 0.5 0.5 0.4 0.6")
    boxes = read_label_files([file], NAMES).boxes_xywh
    assert np.isnan(boxes).all(axis=1).tolist() == [True] * 5 + [False]


def test_pixels_are_told_from_fractions(tmp_path: Path) -> None:
    few = BOXES.tolist() * 4
    labels = read(tmp_path, [*few, [1.05, 0.5, 0.3, 0.2]])  # beyond the image: clipped later
    assert len(labels.boxes_xywh) == 21
    assert len(read(tmp_path, [*few, [64, 48, 20, 10]]).boxes_xywh) == 21  # one slip: dropped later
    with pytest.raises(DatasetError, match=r"a\.txt: boxes seem to be in pixels \(2 of 22, first: 64, 48, 20, 10 in"):
        read(tmp_path, [*few, [64, 48, 20, 10], [64, 48, 20, 10]])


@pytest.mark.parametrize(
    "line", ["2 0.5 0.5 1 1", "cat 0.5 0.5 1 1", "-1 0.5 0.5 1 1", "nan 0.5 0.5 1 1", "0.5 1 1 1 1"]
)
def test_classes_that_there_are_not(tmp_path: Path, line: str) -> None:
    file = tmp_path / "a.txt"
    file.write_text(f"0 0.5 0.5 1 1\n{line}")
    with pytest.raises(DatasetError, match=r"a\.txt, line 2: class .* is not one of the 2 .*0 cat, 1 dog"):
        read_label_files([file], NAMES)


def test_a_file_that_is_no_text(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_bytes(b"\xff\x00\x81")
    with pytest.raises(DatasetError, match="cannot be read as text"):
        read_label_files([file], NAMES)
