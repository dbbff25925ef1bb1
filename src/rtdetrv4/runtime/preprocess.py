"""Preprocessing of images, the same for evaluation, prediction and exported models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import cv2
import numpy as np

from rtdetrv4.types import Rectangle

ResizeMode = Literal["stretch", "letterbox"]
"""How an image fills the input. "stretch": both sides are scaled to it. "letterbox": the image keeps its aspect ratio
and lies in the middle, with black around it."""


def content_of(image_hw: tuple[int, int], size_hw: tuple[int, int], mode: ResizeMode) -> Rectangle:
    """The rectangle of the input that shows an image.

    Args:
        image_hw: height and width of the image, or of the part of it that is shown.
        size_hw: height and width of the input.
        mode: see `ResizeMode`.
    """
    height, width = size_hw
    if mode == "letterbox":
        # Whole numbers, rounded half up: another language finds the same rectangle.
        tall, wide = image_hw[0] * width, image_hw[1] * height
        if tall > wide:
            width = max((2 * wide + image_hw[0]) // (2 * image_hw[0]), 1)
        else:
            height = max((2 * tall + image_hw[1]) // (2 * image_hw[1]), 1)
    return Rectangle((size_hw[0] - height) // 2, (size_hw[1] - width) // 2, height, width)


def scale_of(sizes_hw: np.ndarray, size_hw: tuple[int, int], mode: ResizeMode) -> np.ndarray:
    """How much larger images are in the input: the root of the areas' ratio.

    Args:
        sizes_hw: (n, 2), heights and widths of images.
        size_hw: height and width of the input.
        mode: how the images fill it.

    Returns:
        (n,) float64; below 1 for images that are larger than the input.
    """
    ratios = np.array(size_hw, dtype=np.float64) / sizes_hw
    return ratios.min(axis=1) if mode == "letterbox" else np.sqrt(ratios.prod(axis=1))


def resize(image: np.ndarray, size_hw: tuple[int, int]) -> np.ndarray:
    """Stretch an image to a size, without keeping its aspect ratio.

    A side that shrinks is averaged, so that thin objects do not break into dots; a side that grows is interpolated
    bilinearly.

    Args:
        image: H×W×3 uint8.
        size_hw: the new height and width.

    Returns:
        h×w×3 uint8; `image` itself if it already has that size.
    """
    small = (min(image.shape[0], size_hw[0]), min(image.shape[1], size_hw[1]))
    if small != image.shape[:2]:
        image = cv2.resize(image, small[::-1], interpolation=cv2.INTER_AREA)
    if small != tuple(size_hw):
        image = cv2.resize(image, size_hw[::-1], interpolation=cv2.INTER_LINEAR)
    return image


def pad(shown: np.ndarray, content: Rectangle, size_hw: tuple[int, int]) -> np.ndarray:
    """Put pixels where they belong in the input, on black.

    Black, because augmentation fills with black too: a model has learned that it means nothing.

    Args:
        shown: the pixels of `content`, h×w×3 uint8.
        content: the rectangle they fill.
        size_hw: height and width of the input.

    Returns:
        H×W×3 uint8; `shown` itself if it is as large as the input.
    """
    if shown.shape[:2] == tuple(size_hw):
        return shown
    canvas = np.zeros((*size_hw, 3), dtype=np.uint8)
    canvas[content.slices] = shown
    return canvas


def fit(image: np.ndarray, size_hw: tuple[int, int], mode: ResizeMode) -> np.ndarray:
    """Give an image the size of the input; `preprocess` makes the same of the result as of the image.

    Args:
        image: H×W×3 uint8.
        size_hw: height and width of the input.
        mode: how the image fills it.

    Returns:
        h×w×3 uint8; `image` itself if it already has that size.
    """
    content = content_of(image.shape[:2], size_hw, mode)  # pyright: ignore[reportArgumentType]
    return pad(resize(image, (content.height, content.width)), content, size_hw)


def preprocess(images: Sequence[np.ndarray], size_hw: tuple[int, int], mode: ResizeMode = "stretch") -> np.ndarray:
    """Return images as the input of the network.

    Args:
        images: B images of any size, H×W×3 uint8 RGB.
        size_hw: height and width of the input.
        mode: how the images fill it.

    Returns:
        B×3×h×w float32 in [0, 1], contiguous.
    """
    batch = np.empty((len(images), 3, *size_hw), dtype=np.float32)
    for i, image in enumerate(images):
        np.divide(fit(image, size_hw, mode).transpose(2, 0, 1), np.float32(255), out=batch[i])
    return batch


class View(NamedTuple):
    """What the input shows, in pixels of the image: `preprocess` backwards, for boxes.

    With bars around the image, the view reaches beyond it.
    """

    top: float
    left: float
    height: float
    width: float

    def boxes_px(self, boxes_xyxy: np.ndarray) -> np.ndarray:
        """Boxes (n, 4), xyxy in [0, 1] of the input, in pixels of the image; they may reach beyond it."""
        scale = np.array([self.width, self.height] * 2, dtype=np.float32)
        return boxes_xyxy * scale + np.array([self.left, self.top] * 2, dtype=np.float32)


def view_of(image_hw: tuple[int, int], size_hw: tuple[int, int], mode: ResizeMode) -> View:
    """What the input shows of an image; with "stretch" the image itself, exactly.

    A point at (x, y) in [0, 1] of the input is at (left + x · width, top + y · height) of the image.

    Args:
        image_hw: height and width of the image.
        size_hw: height and width of the input.
        mode: how the image fills it.
    """
    content = content_of(image_hw, size_hw, mode)
    pixel_h, pixel_w = image_hw[0] / content.height, image_hw[1] / content.width
    if mode == "stretch":
        return View(0.0, 0.0, *map(float, image_hw))
    return View(-content.top * pixel_h, -content.left * pixel_w, size_hw[0] * pixel_h, size_hw[1] * pixel_w)
