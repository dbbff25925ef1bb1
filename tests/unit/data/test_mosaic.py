from __future__ import annotations

import numpy as np
import pytest

from rtdetrv4.data.mosaic import draw_mosaic, paint
from rtdetrv4.data.transforms import Augmentation, map_boxes

STILL = Augmentation(rotation=0.0, translation=0.0, min_scale=1.0, max_scale=1.0)


def test_four_squares_fill_the_quarters() -> None:
    matrices, canvas_hw = draw_mosaic(np.random.default_rng(0), np.full((4, 2), 30, np.int32), (100, 80), STILL)
    boxes = [map_boxes(np.array([[0, 0, 30, 30]], np.float32), matrix)[0] for matrix in matrices]
    np.testing.assert_allclose(boxes, [[0, 0, 40, 50], [40, 0, 80, 50], [0, 50, 40, 100], [40, 50, 80, 100]])
    assert canvas_hw == (100, 100)


def test_a_letterbox_scales_the_canvas_to_fit() -> None:
    sizes = np.full((4, 2), 30, np.int32)
    matrices, shown_hw = draw_mosaic(np.random.default_rng(0), sizes, (100, 80), STILL, "letterbox")
    boxes = [map_boxes(np.array([[0, 0, 30, 30]], np.float32), matrix)[0] for matrix in matrices]
    np.testing.assert_allclose(boxes, [[0, 10, 40, 50], [40, 10, 80, 50], [0, 50, 40, 90], [40, 50, 80, 90]])
    assert shown_hw == (125, 100), "of a canvas of 100 × 100"


def test_short_sides_fill_a_tile_and_the_longest_sets_it() -> None:
    sizes_hw = np.array([[40, 80], [80, 40], [40, 40], [20, 20]], np.int32)
    matrices, canvas_hw = draw_mosaic(np.random.default_rng(0), sizes_hw, (80, 80), STILL)
    assert canvas_hw == (160, 160)
    boxes = [
        map_boxes(np.array([[0, 0, width, height]], np.float32), matrix)[0]
        for (height, width), matrix in zip(sizes_hw, matrices, strict=True)
    ]
    np.testing.assert_allclose(boxes, [[0, 0, 40, 20], [40, 0, 60, 40], [0, 40, 20, 60], [40, 40, 60, 60]])


def test_rotation_scale_and_shift_stay_in_range() -> None:
    rng = np.random.default_rng(0)
    drawn = [draw_mosaic(rng, np.full((4, 2), 100, np.int32), (200, 200), Augmentation()) for _ in range(300)]
    linear = np.array([matrices[0][:, :2] for matrices, _ in drawn])
    scales = np.sqrt(np.linalg.det(linear))
    angles = np.rad2deg(np.arctan2(linear[:, 1, 0], linear[:, 0, 0]))
    # The corner that the four images share is the center, shifted.
    centers = np.array([map_boxes(np.array([[100, 100, 100, 100]], np.float32), m[0])[0, :2] for m, _ in drawn])
    for values, low, high in ((scales, 0.5, 1.5), (angles, -10, 10), (centers, 80, 120)):
        assert low <= values.min() < low + 0.05 * (high - low)
        assert high - 0.05 * (high - low) < values.max() <= high


@pytest.mark.parametrize("reduction", [1, 2, 4])
def test_painted_pixels_lie_where_the_matrix_says(reduction: int) -> None:
    image = np.full((40 // reduction, 60 // reduction, 3), 90, np.uint8)
    image[20 // reduction : 32 // reduction, 12 // reduction : 40 // reduction] = 250
    canvas = np.zeros((120, 160, 3), np.uint8)
    angle = np.deg2rad(8)
    linear = 1.7 * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    matrix = np.column_stack([linear, [25.3, 10.6]])
    paint(canvas, image, (40, 60), matrix)
    for box, pixels in (((12, 20, 40, 32), canvas[..., 0] > 170), ((0, 0, 60, 40), canvas[..., 0] > 45)):
        rows, columns = np.flatnonzero(pixels.any(axis=1)), np.flatnonzero(pixels.any(axis=0))
        bounds = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
        np.testing.assert_allclose(bounds, map_boxes(np.array([box], np.float32), matrix)[0], atol=1 + reduction / 2)
    assert set(np.unique(canvas[canvas < 90])) <= {0}, "edges are sharp: no blend with the background"


def test_neighbors_leave_no_seam() -> None:
    image = np.full((50, 50, 3), 200, np.uint8)
    canvas = np.zeros((100, 100, 3), np.uint8)
    stage = Augmentation(translation=0.0, min_scale=1.4, max_scale=1.5)
    for matrix in draw_mosaic(np.random.default_rng(3), np.full((4, 2), 50, np.int32), (100, 100), stage)[0]:
        paint(canvas, image, (50, 50), matrix)
    assert canvas.min() == 200


def test_what_lies_outside_is_not_painted() -> None:
    canvas = np.zeros((10, 10, 3), np.uint8)
    paint(canvas, np.full((5, 5, 3), 255, np.uint8), (5, 5), np.array([[1.0, 0, 10], [0, 1, 0]]))
    assert canvas.max() == 0
