from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as tv
from numpy.typing import NDArray

from rtdetrv4.data.transforms import (
    BRIGHTNESS,
    CONTRAST,
    HUE,
    SATURATION,
    Window,
    centers_inside,
    clip_boxes,
    draw_iou_crop,
    draw_zoom_out,
    flip_matrix,
    map_boxes,
    photometric,
    place,
)
from rtdetrv4.runtime.preprocess import resize


def test_zoom_out_windows_contain_the_image() -> None:
    rng = np.random.default_rng(0)
    windows = np.array([draw_zoom_out(rng, (30, 50)) for _ in range(500)])
    left, top, width, height = windows.T
    assert np.all((left <= 0) & (top <= 0) & (left + width >= 50) & (top + height >= 30))
    assert width.min() < 60
    assert width.max() > 190
    np.testing.assert_allclose(width / height, 50 / 30, rtol=0.04)


def test_crops_keep_what_was_asked_for() -> None:
    rng = np.random.default_rng(0)
    boxes = np.array([[10, 10, 40, 30], [60, 50, 95, 75]], dtype=np.float32)
    canvas = Window(-20, -10, 200, 120)
    crops = [draw_iou_crop(rng, boxes, canvas) for _ in range(500)]
    assert any(crop == canvas for crop in crops)
    for crop in crops:
        assert crop.left >= -20
        assert crop.top >= -10
        assert crop.left + crop.width <= 180
        assert crop.top + crop.height <= 110
        if crop != canvas:
            assert centers_inside(boxes, crop).any()
            assert 0.5 <= crop.width / crop.height <= 2


def test_nothing_to_keep_means_no_crop() -> None:
    canvas = Window(0, 0, 20, 10)
    assert draw_iou_crop(np.random.default_rng(0), np.zeros((0, 4), np.float32), canvas) == canvas


def test_tiny_images_survive_the_crop() -> None:
    rng = np.random.default_rng(0)
    for _ in range(100):
        crop = draw_iou_crop(rng, np.array([[0, 0, 2, 1]], np.float32), Window(0, 0, 2, 1))
        assert crop.width >= 1
        assert crop.height >= 1


def test_centers_decide_what_stays() -> None:
    boxes = np.array([[0, 0, 10, 10], [0, 0, 12, 12], [0, 0, 100, 10.4]], np.float32)
    np.testing.assert_array_equal(centers_inside(boxes, Window(5, 5, 20, 20)), [False, True, False])


@pytest.mark.parametrize("window", [Window(0, 0, 60, 40), Window(-30, -7, 111, 90), Window(13, 5, 31, 22)])
@pytest.mark.parametrize("shape_hw", [(40, 60), (20, 30), (10, 15)])
def test_placement_describes_the_pixels_it_moves(window: Window, shape_hw: tuple[int, int]) -> None:
    placement = place(window, (40, 60), shape_hw, (64, 96))
    low = np.array([placement.columns.start / shape_hw[1] * 60, placement.rows.start / shape_hw[0] * 40])
    high = np.array([placement.columns.stop / shape_hw[1] * 60, placement.rows.stop / shape_hw[0] * 40])
    box = np.array([[*low, *high]])
    expected = [
        placement.out_columns.start,
        placement.out_rows.start,
        placement.out_columns.stop,
        placement.out_rows.stop,
    ]
    np.testing.assert_allclose(map_boxes(box, placement.matrix), [expected], atol=1e-9)
    exact = np.array([[96 / window.width, 0, 0], [0, 64 / window.height, 0]])
    exact[:, 2] = -exact[:, :2] @ [window.left, window.top]
    corners = np.array([[max(window.left, 0), max(window.top, 0), 40, 25]], np.float32)
    # Rounding to whole pixels of the source array and of the sample moves an edge by half of each at most.
    slack = 0.51 * (1 + 60 / shape_hw[1] * 96 / window.width)
    np.testing.assert_allclose(map_boxes(corners, placement.matrix), map_boxes(corners, exact), atol=slack)


def test_flipping_and_mapping_boxes() -> None:
    box = np.array([[1, 2, 4, 8]], np.float32)
    matrix = np.array([[2.0, 0, 3], [0, 1, -1]])
    np.testing.assert_allclose(map_boxes(box, matrix), [[5, 1, 11, 7]])
    np.testing.assert_allclose(map_boxes(box, flip_matrix(matrix, 20)), [[9, 1, 15, 7]])
    quarter_turn = np.array([[0.0, -1, 0], [1, 0, 0]])
    np.testing.assert_allclose(map_boxes(box, quarter_turn), [[-8, 1, -2, 4]])
    assert map_boxes(box[:0], matrix).shape == (0, 4)


def test_boxes_need_a_pixel_before_and_after_the_stretch() -> None:
    boxes = np.array([[-5, 0, 1.5, 9], [-5, 0, 0.9, 9], [0, 0, 3, 1.5], [0, 0, 3, 2.5], [30, 30, 40, 40]])
    clipped, kept = clip_boxes(boxes, out_hw=(20, 20), frame_hw=(10, 40))
    np.testing.assert_array_equal(kept, [True, False, False, True, False])
    np.testing.assert_array_equal(clipped[0], [0, 0, 1.5, 9])
    assert clipped.min() >= 0
    assert clipped.max() <= 20


@pytest.mark.parametrize("size_hw", [(96, 128), (64, 200), (30, 40), (24, 200), (48, 64)])
def test_resize_equals_an_antialiased_resize(size_hw: tuple[int, int]) -> None:
    y, x = np.mgrid[:48, :64]
    image = np.stack([127 + 100 * np.sin(x / 6), 127 + 100 * np.cos(y / 5), x + y], axis=2).astype(np.uint8)
    reference = tv.resize(torch.from_numpy(image).permute(2, 0, 1), list(size_hw), antialias=True)
    assert np.abs(resize(image, size_hw).astype(int) - reference.permute(1, 2, 0).numpy()).max() <= 8


class FixedDraws:
    """Stands in for a generator: which of brightness, contrast, saturation, hue, order, contrast-first, and how far."""

    def __init__(self, on: str, contrast_first: bool = True) -> None:
        self._chances = [float(letter not in on) for letter in "bcshp"] + [0.0 if contrast_first else 1.0]

    def random(self, _: int) -> NDArray[np.float64]:
        return np.array(self._chances)

    def uniform(self, low: NDArray[np.float64], high: NDArray[np.float64]) -> NDArray[np.float64]:
        return low + 0.2 * (high - low)

    def permutation(self, _: int) -> NDArray[np.int64]:
        return np.array([2, 0, 1])


@pytest.mark.parametrize("contrast_first", [True, False])
@pytest.mark.parametrize("on", ["", "b", "c", "s", "h", "p", "bc", "cs", "bcsp", "bcshp"])
def test_colors_equal_those_of_torchvision(on: str, contrast_first: bool) -> None:
    pixels = np.random.default_rng(0).integers(60, 160, (24, 32, 3), np.uint8)
    draws: Any = FixedDraws(on, contrast_first)
    result = photometric(pixels.copy(), draws, 0.5)

    factors = [low + 0.2 * (high - low) for low, high in (BRIGHTNESS, CONTRAST, SATURATION, HUE)]
    image = torch.from_numpy(pixels).permute(2, 0, 1)
    if "b" in on:
        image = tv.adjust_brightness(image, factors[0])
    if "c" in on and contrast_first:
        image = tv.adjust_contrast(image, factors[1])
    if "s" in on:
        image = tv.adjust_saturation(image, factors[2])
    if "h" in on:
        image = tv.adjust_hue(image, factors[3])
    if "c" in on and not contrast_first:
        image = tv.adjust_contrast(image, factors[1])
    if "p" in on:
        image = tv.permute_channels(image, [2, 0, 1])
    # torchvision rounds down after every step; the hue here has 256 steps.
    error = np.abs(result.astype(int) - image.permute(1, 2, 0).numpy())
    assert error.max() <= (5 if "h" in on else 3)


def test_no_photometric_change_without_probability() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    np.testing.assert_array_equal(photometric(pixels.copy(), np.random.default_rng(1), 0.0), pixels)
    assert np.any(photometric(pixels.copy(), np.random.default_rng(1), 1.0) != pixels)
