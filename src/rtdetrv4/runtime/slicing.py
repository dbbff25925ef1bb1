"""Large images in overlapping tiles, and what is found in the tiles as the objects of one image."""

from __future__ import annotations

import re
from typing import NamedTuple

import numpy as np

from rtdetrv4.errors import ConfigError
from rtdetrv4.runtime.preprocess import ResizeMode, scale_of
from rtdetrv4.types import Rectangle

OVERLAP = 0.2
MIN_SIDE, MAX_OVERLAP = 32, 0.9
SAME_OBJECT_IOU = 0.5
"""Boxes of one class, found in different tiles, that overlap this much are one object."""
PART_SHARE = 0.7
"""A box that a tile cuts off, and of which this share lies in another box of its class, is a part of that object."""
CUT_WEIGHT = 0.5
"""What a box that a tile cuts off is worth against whole ones."""
SEAM = 0.01
"""A box this close to a side of its tile, as a share of the tile, may be cut off there."""
MAX_ENLARGEMENT = 1.25
"""How much larger than in training objects may be in a tile; beyond it, parts of them may be found as objects."""


class Slicing(NamedTuple):
    """How images are cut."""

    size_hw: tuple[int, int]
    """Height and width of a tile, in pixels of the image."""
    overlap: float
    """The share of a tile that its neighbor shows too, at least."""
    whole: bool
    """Whether to detect in the whole image as well, for objects that are larger than a tile."""

    @classmethod
    def of(
        cls, size: int | str | tuple[int, int] | None, overlap: float = OVERLAP, whole: bool = True
    ) -> Slicing | None:
        """Check what a user asks for; None for no tiles.

        Args:
            size: the side of a square, "HEIGHTxWIDTH" or (height, width), from 32 pixels.
            overlap: from 0 to 0.9.
            whole: see `Slicing.whole`.

        Raises:
            ConfigError: a value is none of these.
        """
        if size is None:
            return None
        sides: tuple[object, ...] = (size, size)
        if isinstance(size, str) and re.fullmatch(r"\d+(x\d+)?", size):
            sides = tuple(map(int, size.split("x"))) if "x" in size else (int(size), int(size))
        elif isinstance(size, tuple | list):
            sides = tuple(size)
        if len(sides) != 2 or not all(isinstance(side, int | np.integer) and side >= MIN_SIDE for side in sides):
            raise ConfigError(
                f"slice: got {size}, expected the side of a square, such as 640, or (height, width), from {MIN_SIDE} "
                "pixels."
            )
        if not (isinstance(overlap, int | float | np.number) and 0 <= overlap <= MAX_OVERLAP):
            raise ConfigError(f"overlap: got {overlap}, expected a share of a tile from 0 to {MAX_OVERLAP}.")
        height, width = (int(side) for side in sides)  # pyright: ignore[reportArgumentType]
        return cls((height, width), float(overlap), whole)

    def cuts(self, image_hw: tuple[int, int]) -> bool:
        """Whether an image is larger than a tile."""
        return image_hw[0] > self.size_hw[0] or image_hw[1] > self.size_hw[1]


def tiles_of(image_hw: tuple[int, int], slicing: Slicing | None) -> tuple[Rectangle, ...]:
    """The tiles of an image, row by row, and the image itself if that is wanted; only that if it fits a tile.

    Tiles lie at equal distances, but the last of a row or column ends with the image. A side that is shorter than a
    tile is shown whole.

    Args:
        image_hw: height and width of the image.
        slicing: None: no tiles.
    """
    height, width = image_hw
    image = Rectangle(0, 0, height, width)
    if slicing is None or not slicing.cuts(image_hw):
        return (image,)
    tall, wide = min(height, slicing.size_hw[0]), min(width, slicing.size_hw[1])
    tiles = tuple(
        Rectangle(top, left, tall, wide)
        for top in _starts(height, tall, slicing.overlap)
        for left in _starts(width, wide, slicing.overlap)
    )
    return (*tiles, image) if slicing.whole else tiles


def num_tiles(image_hw: tuple[int, int], slicing: Slicing | None) -> int:
    """The number of `tiles_of` an image, without making them."""
    if slicing is None or not slicing.cuts(image_hw):
        return 1
    rows, columns = (
        len(_starts(length, min(length, size), slicing.overlap))
        for length, size in zip(image_hw, slicing.size_hw, strict=True)
    )
    return rows * columns + slicing.whole


def enlargement_warning(
    slicing: Slicing, size_hw: tuple[int, int], mode: ResizeMode, training_hw: tuple[float, float] | None
) -> str | None:
    """What to say if tiles show objects much larger than training did; None if they do not, or it is not known.

    Args:
        slicing: the tiles.
        size_hw: height and width of the input.
        mode: how a tile fills it.
        training_hw: height and width of an image that the input shows at the scale of training: at the image size of
            training, the usual size of the training images.
    """
    if training_hw is None:
        return None
    tile, usual = scale_of(np.array([slicing.size_hw, training_hw]), size_hw, mode)
    if tile <= MAX_ENLARGEMENT * usual:
        return None
    small, fitting = ("x".join(map(str, dict.fromkeys(map(round, sides)))) for sides in (slicing.size_hw, training_hw))
    return (
        f"tiles of {small} pixels show objects {tile / usual:.1f} times as large as training did, so parts of objects "
        f"may be taken for objects; tiles of {fitting} show them as training images do"
    )


def merge_tiles(
    scores: np.ndarray,
    labels: np.ndarray,
    boxes_xyxy_px: np.ndarray,
    tile_of: np.ndarray,
    tiles: tuple[Rectangle, ...],
) -> np.ndarray:
    """Choose from what was found in all tiles, so that no object has two boxes.

    In the order of their confidence, where boxes that end at a seam count half of theirs, a box is dropped if a box of
    its class stays that was found in another tile and either overlaps it by an IoU of 0.5, or shows more of what the
    seam cuts off: 70 % of a box that ends at a seam lie in it. Boxes of one tile never drop each other: the model has
    seen them side by side.

    Args:
        scores: (n,).
        labels: (n,).
        boxes_xyxy_px: (n, 4), pixels of the image.
        tile_of: (n,), the index of the tile that each was found in.
        tiles: those of `tiles_of`.

    Returns:
        Indices (m,) of those that stay, by descending score.
    """
    boxes = boxes_xyxy_px.astype(np.float64)
    is_cut = _ends_at_seam(boxes, tile_of, tiles)
    ranking = np.argsort(-scores * np.where(is_cut, CUT_WEIGHT, 1), kind="stable")
    rank = np.empty(len(ranking), dtype=np.int64)
    rank[ranking] = np.arange(len(ranking))

    kept = np.ones(len(scores), dtype=bool)
    for better, worse in _same_objects(boxes, labels, rank, is_cut, tile_of, tiles):
        kept[worse] &= not kept[better]
    chosen = np.flatnonzero(kept)
    return chosen[np.argsort(-scores[chosen], kind="stable")]


def _same_objects(
    boxes: np.ndarray,
    labels: np.ndarray,
    rank: np.ndarray,
    is_cut: np.ndarray,
    tile_of: np.ndarray,
    tiles: tuple[Rectangle, ...],
) -> list[tuple[int, int]]:
    """Pairs of indices, the better first, of boxes in different tiles that show one object; the best pairs first.

    Only tiles that overlap are compared, and of their boxes only those in both: an image of 12 megapixels has 49 tiles
    with 300 boxes each, of which all pairs would be a hundred million.
    """
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    members = [np.flatnonzero(tile_of == number) for number in range(len(tiles))]
    edges = _edges(tiles)
    left, top, right, bottom = edges.T
    meets = (left[:, None] < right) & (left < right[:, None]) & (top[:, None] < bottom) & (top < bottom[:, None])
    pairs: list[np.ndarray] = [np.zeros((0, 2), dtype=np.int64)]
    for one, other in np.argwhere(np.triu(meets, 1)).tolist():
        low, high = np.maximum(edges[one, :2], edges[other, :2]), np.minimum(edges[one, 2:], edges[other, 2:])
        own, others = (
            here[(boxes[here, :2] < high).all(axis=1) & (boxes[here, 2:] > low).all(axis=1)]
            for here in (members[one], members[other])
        )
        row, column = np.nonzero(labels[own][:, None] == labels[others])
        pair = np.stack([own[row], others[column]], axis=1)
        pair = np.take_along_axis(pair, np.argsort(rank[pair], axis=1), axis=1)
        better, worse = pair[:, 0], pair[:, 1]
        sides = np.minimum(boxes[better, 2:], boxes[worse, 2:]) - np.maximum(boxes[better, :2], boxes[worse, :2])
        inner = sides.clip(min=0).prod(axis=1)
        is_same = inner >= SAME_OBJECT_IOU * (areas[better] + areas[worse] - inner)
        is_part = is_cut[worse] & (inner >= PART_SHARE * areas[worse])
        pairs.append(pair[(inner > 0) & (is_same | is_part)])
    joined = np.concatenate(pairs)
    return [(better, worse) for better, worse in joined[np.argsort(rank[joined[:, 0]], kind="stable")].tolist()]


def _starts(length: int, size: int, overlap: float) -> list[int]:
    """Where tiles begin that cover a side."""
    step = max(int(size * (1 - overlap)), 1)
    return [*range(0, length - size, step), length - size]


def _ends_at_seam(boxes: np.ndarray, tile_of: np.ndarray, tiles: tuple[Rectangle, ...]) -> np.ndarray:
    """(n,) bool: a side of the box is at a side of its tile that is not one of the image."""
    edges = _edges(tiles)
    image = np.concatenate([edges[:, :2].min(axis=0), edges[:, 2:].max(axis=0)])
    margin = SEAM * np.tile(edges[:, 2:] - edges[:, :2], 2)[tile_of]
    is_near = np.abs(boxes - edges[tile_of]) <= margin
    return (is_near & (edges != image)[tile_of]).any(axis=1)


def _edges(tiles: tuple[Rectangle, ...]) -> np.ndarray:
    """(T, 4) float64: left, top, right and bottom of each tile."""
    return np.array([(t.left, t.top, t.left + t.width, t.top + t.height) for t in tiles], dtype=np.float64)
