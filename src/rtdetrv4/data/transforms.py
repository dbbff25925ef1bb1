"""Augmentation of one image: the crop is drawn on the boxes alone, then the pixels are resampled once.

The distributions are those of torchvision.transforms.v2 (RandomZoomOut, RandomIoUCrop, RandomPhotometricDistort,
SanitizeBoundingBoxes, RandomHorizontalFlip, Resize), with which the released models were trained. There every step
makes a new image; here the geometry is one affine matrix, and images stay uint8 H×W×3 RGB until they are on the device.

Coordinates are continuous pixels: the first pixel of a row covers x from 0 to 1.
"""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

ZOOM_OUT_RANGE = (1.0, 4.0)
CROP_OVERLAPS = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9)
"""Minimum IoUs with a box, one of which is drawn for a crop; one more choice is no crop at all."""
CROP_SCALE = (0.3, 1.0)
CROP_ASPECT = (0.5, 2.0)
CROP_TRIALS = 40
RANDOM_CROP_ASPECT, RANDOM_CROP_TRIALS = (3 / 4, 4 / 3), 10
BRIGHTNESS, CONTRAST, SATURATION, HUE = (0.875, 1.125), (0.5, 1.5), (0.5, 1.5), (-0.05, 0.05)
MIN_SIDE = 1.0
LUMA = np.array([0.299, 0.587, 0.114])


class Augmentation(NamedTuple):
    """The augmentation of a stage of training. The first six fields are probabilities."""

    mosaic: float = 0.0
    """That a sample is a mosaic of four images, which is neither zoomed out nor cropped."""
    mixup: float = 0.0
    """That the images of a batch are blended with each other (`batch.mix_up`)."""
    photometric: float = 0.0
    """That brightness changes; likewise, each by itself, contrast, saturation, hue and channel order."""
    zoom_out: float = 0.0
    iou_crop: float = 0.0
    flip: float = 0.0
    """That a sample is flipped left to right."""
    rotation: float = 10.0
    """The largest rotation of a mosaic, in degrees."""
    translation: float = 0.1
    """The largest shift of a mosaic, as a fraction of its sides."""
    min_scale: float = 0.5
    max_scale: float = 1.5
    random_crop: float = 0.0
    """The smallest share of an image that a random crop shows; 0: no such crops. They ignore boxes, and so are for
    images without any."""
    permutes: float = 1.0
    """Whether photometric changes include the order of the channels: 1 or 0."""


class Window(NamedTuple):
    """The rectangle that becomes the sample, in pixels of the source image; it may reach beyond the image."""

    left: int
    top: int
    width: int
    height: int


def draw_zoom_out(rng: Generator, size_hw: tuple[int, int]) -> Window:
    """Draw a window up to four times as wide and high as the image, which lies somewhere in it."""
    height, width = size_hw
    factor = rng.uniform(*ZOOM_OUT_RANGE)
    out_width, out_height = int(width * factor), int(height * factor)
    right, down = rng.random(2)
    return Window(-int((out_width - width) * right), -int((out_height - height) * down), out_width, out_height)


def draw_iou_crop(rng: Generator, boxes_xyxy_px: NDArray[np.float32], window: Window) -> Window:
    """Draw a part of `window` with the center of a box in it and a drawn minimum IoU with one (SSD, section 2.2).

    Args:
        rng: the random generator.
        boxes_xyxy_px: (n, 4), in pixels of the source image.
        window: the window to crop.

    Returns:
        The crop, or `window` itself if no crop was drawn or there are no boxes.
    """
    if not len(boxes_xyxy_px):
        return window
    boxes = boxes_xyxy_px - np.array([window.left, window.top] * 2)
    centers = (boxes[:, :2] + boxes[:, 2:]) / 2
    box_areas = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    size = np.array([window.width, window.height])
    while True:
        choice = int(rng.integers(len(CROP_OVERLAPS) + 1))
        if choice == len(CROP_OVERLAPS):
            return window
        # All trials at once, of which the first good one counts: the same distribution as one trial after the other.
        sides = (size * rng.uniform(*CROP_SCALE, size=(CROP_TRIALS, 2))).astype(np.int64)
        low = ((size - sides) * rng.random((CROP_TRIALS, 2))).astype(np.int64)
        high = low + sides
        within = np.all((low[:, None] < centers) & (centers < high[:, None]), axis=2)
        inner_low = np.maximum(low[:, None], boxes[:, :2])
        inner = np.prod(np.clip(np.minimum(high[:, None], boxes[:, 2:]) - inner_low, 0, None), axis=2)
        overlap = inner / (np.prod(sides, axis=1)[:, None] + box_areas - inner).clip(min=1e-9)
        aspect = sides[:, 0] / sides[:, 1].clip(min=1)
        good = np.any(within & (overlap >= CROP_OVERLAPS[choice]), axis=1) & (sides.min(axis=1) > 0)
        good &= (aspect >= CROP_ASPECT[0]) & (aspect <= CROP_ASPECT[1])
        if good.any():
            trial = int(good.argmax())
            (left, top), (width, height) = low[trial].tolist(), sides[trial].tolist()
            return Window(window.left + left, window.top + top, width, height)


def draw_random_crop(rng: Generator, size_hw: tuple[int, int], least: float) -> Window:
    """Draw a part of an image by its area and aspect ratio, as torchvision's RandomResizedCrop does.

    Args:
        rng: the random generator.
        size_hw: the size of the image.
        least: the smallest share of its area.

    Returns:
        The crop, or the whole image if no drawn shape fits into it.
    """
    height, width = size_hw
    sides = np.sqrt(height * width * rng.uniform(least, 1.0, RANDOM_CROP_TRIALS))
    low, high = np.log(RANDOM_CROP_ASPECT).tolist()
    stretch = np.exp(rng.uniform(low, high, RANDOM_CROP_TRIALS) / 2)
    widths, heights = np.rint(sides * stretch).astype(np.int64), np.rint(sides / stretch).astype(np.int64)
    right, down = rng.random(2)
    fitting = np.flatnonzero((widths >= 1) & (widths <= width) & (heights >= 1) & (heights <= height))
    if not len(fitting):
        return Window(0, 0, width, height)
    out_width, out_height = int(widths[fitting[0]]), int(heights[fitting[0]])
    return Window(int((width - out_width + 1) * right), int((height - out_height + 1) * down), out_width, out_height)


def centers_inside(boxes_xyxy_px: NDArray[np.float32], window: Window) -> NDArray[np.bool_]:
    """(n,): whether the center of each box is inside the window, so that a crop keeps it."""
    centers = (boxes_xyxy_px[:, :2] + boxes_xyxy_px[:, 2:]) / 2
    low, sides = np.array([window.left, window.top]), np.array([window.width, window.height])
    return np.all((centers > low) & (centers < low + sides), axis=1)


class Placement(NamedTuple):
    """The whole pixels of an image that fill whole pixels of the sample, and the affine map between them."""

    rows: slice
    columns: slice
    out_rows: slice
    out_columns: slice
    matrix: NDArray[np.float64]
    """(2, 3), from source pixels at the annotated size to sample pixels, without the flip."""


def place(window: Window, size_hw: tuple[int, int], shape_hw: tuple[int, int], out_hw: tuple[int, int]) -> Placement:
    """Place the pixels of `window` in a sample of `out_hw`.

    Edges are first rounded to whole pixels, which moves them by half a pixel at most, and the matrix describes the
    rounded map exactly: boxes fit their pixels, and a plain resize replaces a warp, which is better and faster.

    Args:
        window: in pixels of the source image.
        size_hw: the size of the source image that its boxes assume.
        shape_hw: the size of the decoded array, which may be smaller.
        out_hw: the size of the sample.
    """
    columns, out_columns, scale_x, offset_x = _place_axis(window.left, window.width, size_hw[1], shape_hw[1], out_hw[1])
    rows, out_rows, scale_y, offset_y = _place_axis(window.top, window.height, size_hw[0], shape_hw[0], out_hw[0])
    matrix = np.array([[scale_x, 0.0, offset_x], [0.0, scale_y, offset_y]])
    return Placement(rows, columns, out_rows, out_columns, matrix)


def _place_axis(start: int, length: int, size: int, pixels: int, out: int) -> tuple[slice, slice, float, float]:
    low, high = max(start, 0), min(start + length, size)
    first = min(round(low * pixels / size), pixels - 1)
    last = max(round(high * pixels / size), first + 1)
    out_first = min(round((low - start) * out / length), out - 1)
    out_last = max(round((high - start) * out / length), out_first + 1)
    scale = (out_last - out_first) / (last - first) * pixels / size
    return slice(first, last), slice(out_first, out_last), scale, out_first - first * size / pixels * scale


def flip_matrix(matrix: NDArray[np.float64], width: int) -> NDArray[np.float64]:
    """`matrix` (…, 2, 3) followed by a left-right flip of a sample `width` pixels wide."""
    flipped = matrix.copy()
    flipped[..., 0, :] *= -1
    flipped[..., 0, 2] += width
    return flipped


def map_boxes(boxes_xyxy_px: NDArray[np.float32], matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """Map boxes (n, 4) by an affine `matrix` (2, 3), and take the axis-aligned boxes around the results."""
    corners = boxes_xyxy_px[:, [0, 1, 2, 1, 2, 3, 0, 3]].reshape(-1, 4, 2) @ matrix[:, :2].T + matrix[:, 2]
    return np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1)


def clip_boxes(
    boxes_xyxy_px: NDArray[np.float64], out_hw: tuple[int, int], frame_hw: tuple[float, float]
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Clip boxes (n, 4) to the sample; also returns (n,) whether enough of each is left to keep it.

    A box is kept if its sides are a pixel or longer, in the sample and before the stretch from `frame_hw` to `out_hw`.
    """
    limit = np.array([out_hw[1], out_hw[0]], dtype=np.float64)
    clipped = np.clip(boxes_xyxy_px, 0.0, np.tile(limit, 2))
    least = MIN_SIDE * np.maximum(1.0, limit / [frame_hw[1], frame_hw[0]])
    return clipped, np.all(clipped[:, 2:] - clipped[:, :2] >= least, axis=1)


def photometric(
    image: NDArray[np.uint8], rng: Generator, probability: float, *, permutes: bool = True
) -> NDArray[np.uint8]:
    """Change brightness, contrast, saturation, hue and channel order, each with `probability`.

    All but the hue are linear in RGB, and are applied as one color matrix without intermediate rounding.

    Args:
        image: H×W×3 RGB.
        rng: the random generator.
        probability: the probability of each change.
        permutes: whether the channel order is one of them.
    """
    brighten, contrast, saturate, turn_hue, permute, contrast_first = rng.random(6)
    factors = rng.uniform(*np.array([BRIGHTNESS, CONTRAST, SATURATION, HUE]).T)
    order = rng.permutation(3)

    color = np.eye(3, 4)
    if brighten < probability:
        color *= factors[0]
    if contrast < probability and contrast_first < 0.5:
        color = _contrast(color, image, factors[1])
    if saturate < probability:
        color = (factors[2] * np.eye(3) + (1 - factors[2]) * LUMA) @ color
    if turn_hue < probability:
        image = _turn_hue(_recolor(image, color), factors[3])
        color = np.eye(3, 4)
    if contrast < probability and contrast_first >= 0.5:
        color = _contrast(color, image, factors[1])
    if permutes and permute < probability:
        color = color[order]
    return _recolor(image, color)


def _contrast(color: NDArray[np.float64], image: NDArray[np.uint8], factor: float) -> NDArray[np.float64]:
    """`color` (3, 4), followed by a blend with the mean gray of the image it yields."""
    gray = LUMA @ color @ [*cv2.mean(image)[:3], 1.0]
    color = factor * color
    color[:, 3] += (1 - factor) * gray
    return color


def _turn_hue(image: NDArray[np.uint8], turn: float) -> NDArray[np.uint8]:
    """Rotate the hue by `turn` of a full circle; uint8 arithmetic wraps around."""
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV_FULL)
    hsv[..., 0] += np.uint8(round(turn * 256) % 256)
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL)  # pyright: ignore[reportReturnType]


def _recolor(image: NDArray[np.uint8], color: NDArray[np.float64]) -> NDArray[np.uint8]:
    if np.array_equal(color, np.eye(3, 4)):
        return image
    return cv2.transform(image, color.astype(np.float32))  # pyright: ignore[reportReturnType]
