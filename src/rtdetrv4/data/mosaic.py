"""Mosaic: four images in one sample, more objects per step for one-to-one matching (DEIM, section 3.1: Dense O2O)."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from rtdetrv4.data.transforms import Augmentation
from rtdetrv4.runtime.preprocess import ResizeMode

SUBPIXEL_BITS = 4


def draw_mosaic(
    rng: Generator,
    sizes_hw: NDArray[np.int32],
    out_hw: tuple[int, int],
    stage: Augmentation,
    mode: ResizeMode = "stretch",
) -> tuple[NDArray[np.float64], tuple[float, float]]:
    """Draw where four images go in a mosaic.

    As in the released code, every image is scaled to cover a tile of half the sample (its short side fills a square
    tile, its long side exceeds it). The largest scaled sides are the tile size of a 2×2 canvas, with an image in the
    top left of each tile. The canvas is rotated, scaled and shifted about its center, and stretched to the sample; in
    letterbox mode it is scaled to fit and centered, and what the rotation moved beyond its sides may still show.

    Args:
        rng: the random generator.
        sizes_hw: (4, 2), top left, top right, bottom left, bottom right.
        out_hw: the size of the sample.
        stage: the ranges of rotation, scale and translation.
        mode: how the canvas fills the sample.

    Returns:
        (4, 2, 3), the affine map from the pixels of each image to the sample, and the size (h, w) of the part of the
        canvas's plane that the sample shows.
    """
    cover = np.max(np.array(out_hw) / 2 / sizes_hw, axis=1, keepdims=True)
    scaled_hw = np.maximum(np.floor(sizes_hw * cover + 1e-6), 1)
    tile_hw = scaled_hw.max(axis=0)
    canvas_wh = 2 * tile_hw[::-1]

    angle = np.deg2rad(rng.uniform(-stage.rotation, stage.rotation))
    shift = np.rint(rng.uniform(-stage.translation, stage.translation, 2) * canvas_wh)
    scale = rng.uniform(stage.min_scale, stage.max_scale)
    turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    out_wh = np.array(out_hw[::-1])
    stretch, bars = out_wh / canvas_wh, np.zeros(2)
    if mode == "letterbox":
        stretch = np.full(2, stretch.min())
        bars = (out_wh - stretch * canvas_wh) / 2

    corners = np.array([[0, 0], [1, 0], [0, 1], [1, 1]]) * tile_hw[::-1]
    linear = stretch[:, None] * turn * (scaled_hw / sizes_hw)[:, None, ::-1]
    offset = stretch * ((corners - canvas_wh / 2) @ turn.T + canvas_wh / 2 + shift) + bars
    shown_w, shown_h = (canvas_wh + 2 * bars / stretch).tolist()
    return np.concatenate([linear, offset[:, :, None]], axis=2), (shown_h, shown_w)


def paint(
    canvas: NDArray[np.uint8], image: NDArray[np.uint8], size_hw: tuple[int, int], matrix: NDArray[np.float64]
) -> None:
    """Warp `image` onto the part of `canvas` that it covers.

    Args:
        canvas: H×W×3, modified in place.
        image: the pixels, at any resolution.
        size_hw: the image size that `matrix` assumes.
        matrix: (2, 3), from pixels of the image to pixels of the canvas.
    """
    height, width = image.shape[:2]
    corners = np.array([[0, 0], [size_hw[1], 0], [size_hw[1], size_hw[0]], [0, size_hw[0]]]) @ matrix[:, :2].T
    corners += matrix[:, 2]
    limit = canvas.shape[1::-1]
    left, top = np.clip(np.floor(corners.min(axis=0)), 0, limit).astype(int).tolist()
    right, bottom = np.clip(np.ceil(corners.max(axis=0)), 0, limit).astype(int).tolist()
    if left >= right or top >= bottom:
        return

    # OpenCV's coordinates start at pixel centers: its (0, 0) is our (0.5, 0.5), in source and target.
    warp = matrix.copy()
    warp[:, :2] *= [size_hw[1] / width, size_hw[0] / height]
    warp[:, 2] += warp[:, :2] @ [0.5, 0.5] - 0.5 - [left, top]
    size = (right - left, bottom - top)
    pixels = cv2.warpAffine(image, warp, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    # Replicating edges under a mask avoids the dark seams that blending with the background would leave.
    outline = np.rint((corners - [left, top] - 0.5) * 2**SUBPIXEL_BITS).astype(np.int32)
    mask = cv2.fillConvexPoly(np.zeros(size[::-1], np.uint8), outline, 255, shift=SUBPIXEL_BITS)
    cv2.copyTo(pixels, mask, canvas[top:bottom, left:right])
