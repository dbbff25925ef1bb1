"""Preprocessing of images, the same for evaluation, prediction and exported models."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np


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


def preprocess(images: Sequence[np.ndarray], size_hw: tuple[int, int]) -> np.ndarray:
    """Return images as the input of the network.

    Args:
        images: B images of any size, H×W×3 uint8 RGB.
        size_hw: height and width of the input.

    Returns:
        B×3×h×w float32 in [0, 1], contiguous.
    """
    batch = np.empty((len(images), 3, *size_hw), dtype=np.float32)
    for i, image in enumerate(images):
        np.divide(resize(image, size_hw).transpose(2, 0, 1), np.float32(255), out=batch[i])
    return batch
