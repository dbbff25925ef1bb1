"""From a source to detections, with any network."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import NamedTuple

import numpy as np

from rtdetrv4.errors import ConfigError
from rtdetrv4.runtime.detections import Detections
from rtdetrv4.runtime.overlap import close_iterator
from rtdetrv4.runtime.preprocess import ResizeMode, view_of
from rtdetrv4.runtime.selection import Selection
from rtdetrv4.runtime.slicing import Slicing, enlargement_warning, merge_tiles, tiles_of
from rtdetrv4.runtime.sources import Frame
from rtdetrv4.types import ClassMap, Rectangle

logger: logging.Logger = logging.getLogger(__name__)

Run = Callable[[Sequence[np.ndarray]], tuple[np.ndarray, np.ndarray, np.ndarray]]
"""From B images, H×W×3 uint8 RGB, to scores B×N in descending order, labels B×N, and boxes B×N×4, xyxy in [0, 1] of the
input."""


def detect(
    frames: Iterator[Frame] | Iterator[Frame | None],
    run: Run,
    *,
    classes: ClassMap,
    size_hw: tuple[int, int],
    mode: ResizeMode,
    batch: int,
    selection: Selection,
    slicing: Slicing | None = None,
    training_hw: tuple[float, float] | None = None,
    steps: Sequence[Callable[[Detections], Detections]] = (),
) -> Iterator[Detections]:
    """Detect objects in every image of a source.

    Args:
        frames: what `read_source` or `open_frames` returned. It comes first, because it says at once if there is no
            such file, and a network may still have to be fetched. It is closed with what is returned here. None in it
            runs the network on what has come.
        run: the network.
        classes: the network's K classes.
        size_hw: height and width of the network's input.
        mode: how images fill it.
        batch: images, or tiles of them, per run.
        selection: which predictions to return.
        slicing: how to cut images into tiles; None for no tiles.
        training_hw: height and width of an image that the input shows at the scale of training; None if that is not
            known. Tiles that show objects much larger are told.
        steps: what is done with the detections of each image, one step after the other.

    Raises:
        ConfigError: `batch` is not a number of images.
        SourceError: an image cannot be read, when its turn comes.
    """
    if not isinstance(batch, int | np.integer) or batch < 1:
        raise ConfigError(f"batch: got {batch}, expected a number of images, 1 or more.")
    warning = None if slicing is None else enlargement_warning(slicing, size_hw, mode, training_hw)
    return _stream(frames, run, classes, size_hw, mode, batch, selection, slicing, warning, steps)


class _Piece(NamedTuple):
    """A tile of a frame, or all of it."""

    frame: Frame
    tiles: tuple[Rectangle, ...]
    number: int

    @property
    def tile(self) -> Rectangle:
        return self.tiles[self.number]


class _Found(NamedTuple):
    """The predictions chosen in a tile."""

    scores: np.ndarray
    labels: np.ndarray
    boxes_xyxy_px: np.ndarray
    """Pixels of the tile."""


def _stream(
    frames: Iterator[Frame] | Iterator[Frame | None],
    run: Run,
    classes: ClassMap,
    size_hw: tuple[int, int],
    mode: ResizeMode,
    batch: int,
    selection: Selection,
    slicing: Slicing | None,
    warning: str | None,
    steps: Sequence[Callable[[Detections], Detections]],
) -> Iterator[Detections]:
    has_warned = False
    parts: list[_Found] = []
    try:
        for chunk in _batches(_pieces(frames, slicing), batch):
            images = [piece.frame.image[piece.tile.slices] for piece in chunk]
            for piece, scores, labels, boxes in zip(chunk, *run(images), strict=True):
                if np.isnan(scores).any() and not has_warned:
                    has_warned = True
                    logger.warning(
                        "the network returns NaN instead of scores, so nothing is found; are its weights damaged?"
                    )
                chosen = selection(scores, labels, boxes)
                view = view_of((piece.tile.height, piece.tile.width), size_hw, mode)
                parts.append(_Found(scores[chosen], labels[chosen], view.boxes_px(boxes[chosen].astype(np.float32))))
                if len(parts) < len(piece.tiles):
                    continue
                if warning is not None and len(piece.tiles) > 1:
                    _warn_once(warning)
                found = _joined(parts, piece.tiles)
                parts.clear()
                detections = Detections.from_predictions(
                    *(each[: selection.max_det] for each in found),
                    names=classes.names,
                    category_ids=classes.category_ids,
                    image=piece.frame.image,
                    path=piece.frame.path,
                    frame_index=piece.frame.frame_index,
                    time=piece.frame.time,
                    is_last=piece.frame.is_last,
                )
                for step in steps:
                    detections = step(detections)
                yield detections
    finally:
        close_iterator(frames)


@cache
def _warn_once(message: str) -> None:
    """Warn, but not again: an evaluation detects in one image after the other."""
    logger.warning("%s", message)


def _pieces(frames: Iterator[Frame] | Iterator[Frame | None], slicing: Slicing | None) -> Iterator[_Piece | None]:
    for frame in frames:
        if frame is None:
            yield None
            continue
        height, width = frame.image.shape[:2]
        tiles = tiles_of((height, width), slicing)
        yield from (_Piece(frame, tiles, number) for number in range(len(tiles)))


def _batches(pieces: Iterator[_Piece | None], batch: int) -> Iterator[list[_Piece]]:
    """Full batches, and smaller ones where no more has come."""
    waiting: list[_Piece] = []
    for piece in pieces:
        if piece is not None:
            waiting.append(piece)
        if len(waiting) == batch or (piece is None and waiting):
            yield waiting
            waiting = []
    if waiting:
        yield waiting


def _joined(parts: Sequence[_Found], tiles: tuple[Rectangle, ...]) -> _Found:
    """What was found in a frame, in its pixels; if it has several tiles, clipped to them and without second boxes."""
    if len(parts) == 1:
        return parts[0]
    boxes, indices = [], []
    for index, (part, tile) in enumerate(zip(parts, tiles, strict=True)):
        size = np.array([tile.width, tile.height] * 2, dtype=np.float32)
        boxes.append(part.boxes_xyxy_px.clip(0, size) + np.array([tile.left, tile.top] * 2, dtype=np.float32))
        indices.append(np.full(len(part.scores), index))
    found = _Found(
        np.concatenate([part.scores for part in parts]),
        np.concatenate([part.labels for part in parts]),
        np.concatenate(boxes),
    )
    has_area = (found.boxes_xyxy_px[:, 2:] > found.boxes_xyxy_px[:, :2]).all(axis=1)  # False outside the tile
    found, tile_of = _Found(*(each[has_area] for each in found)), np.concatenate(indices)[has_area]
    chosen = merge_tiles(*found, tile_of, tiles)
    return _Found(*(each[chosen] for each in found))
