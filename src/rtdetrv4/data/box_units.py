"""Boxes that are written in other units than their format prescribes, recognized from all boxes of a file."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Boxes = NDArray[np.float64]
"""(N, 4)."""
FRACTION_TOLERANCE = 0.01
"""How far a fraction of the image may leave [0, 1]; exporters round."""
MIN_CORNERS = 4
"""The number of boxes from which on corners can be told from sides."""
MIN_SHARE_OUTSIDE = 0.1
"""The share of boxes that must leave their image before they are taken as corners."""


def sides_in_pixels(xywh: Boxes, areas: Boxes, sizes_wh: Boxes, tolerance: float) -> tuple[Boxes, Boxes, list[str]]:
    """Convert boxes to left, top, width and height in pixels if, taken together, they can only be something else.

    Scripts write fractions of the image where COCO and Pascal VOC have pixels, and corners where COCO has sides. One
    box never tells; a whole file does. Boxes that all lie in [0, 1] would all lie within the first pixel. Boxes that
    all fit their images as corners, while a tenth of them would leave the images as sides, are corners.

    Args:
        xywh: (N, 4) boxes as given; NaN if unreadable.
        areas: (N,) areas as given; NaN if unknown.
        sizes_wh: (N, 2) width and height of the image of each box.
        tolerance: pixels by which a box may leave its image.

    Returns:
        The boxes; the areas, NaN where they do not suit the boxes; and what was converted, a sentence each.
    """
    told: list[str] = []
    readable = ~np.isnan(xywh).any(axis=1)
    if _are_fractions(xywh[readable], sizes_wh[readable]):
        xywh = xywh * np.tile(sizes_wh, 2)
        told.append(f"all {readable.sum()} boxes lie in [0, 1] and were taken as fractions of the image, not as pixels")
    if outside := _num_outside_as_sides(xywh[readable], sizes_wh[readable], tolerance):
        xywh = np.concatenate([xywh[:, :2], xywh[:, 2:] - xywh[:, :2]], axis=1)
        told.append(
            f"all {readable.sum()} boxes were taken as [left, top, right, bottom]: as [left, top, width, height], "
            f"{outside} of them would leave their images"
        )
    if told:
        fitting = (areas > 1) & (areas <= 1.01 * np.prod(xywh[:, 2:], axis=1))
        areas = np.where(fitting, areas, np.nan)
    return xywh, areas, told


def _are_fractions(xywh: Boxes, sizes_wh: Boxes) -> bool:
    low, high = -FRACTION_TOLERANCE, 1 + FRACTION_TOLERANCE
    return bool(len(xywh)) and bool(np.all((xywh >= low) & (xywh <= high)) and np.all(sizes_wh > high))


def _num_outside_as_sides(xywh: Boxes, sizes_wh: Boxes, tolerance: float) -> int:
    """How many boxes leave their images as sides if all of them fit as corners, otherwise 0."""
    low, high = xywh[:, :2], xywh[:, 2:]
    fit_as_corners = np.all((low >= -tolerance) & (low < high) & (high <= sizes_wh + tolerance))
    outside = np.any(low + high > sizes_wh + tolerance, axis=1).sum()
    is_plain = len(xywh) >= MIN_CORNERS and outside >= MIN_SHARE_OUTSIDE * len(xywh)
    return int(outside) if fit_as_corners and is_plain else 0
