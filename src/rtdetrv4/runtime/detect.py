"""From a source to detections, with any network."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from rtdetrv4.errors import ConfigError
from rtdetrv4.runtime.detections import Detections
from rtdetrv4.runtime.preprocess import ResizeMode, view_of
from rtdetrv4.runtime.selection import Selection
from rtdetrv4.runtime.sources import Frame
from rtdetrv4.types import ClassMap

logger = logging.getLogger(__name__)

Run = Callable[[Sequence[np.ndarray]], tuple[np.ndarray, np.ndarray, np.ndarray]]
"""From B images, H×W×3 uint8 RGB, to scores B×N in descending order, labels B×N, and boxes B×N×4, xyxy in [0, 1] of the
input."""


def detect(
    frames: Iterator[Frame],
    run: Run,
    *,
    classes: ClassMap,
    size_hw: tuple[int, int],
    mode: ResizeMode,
    batch: int,
    selection: Selection,
) -> Iterator[Detections]:
    """Detect objects in every image of a source.

    Args:
        frames: what `read_source` returned. It comes first, because it says at once if there is no such file, and a
            network may still have to be fetched.
        run: the network.
        classes: the network's K classes.
        size_hw: height and width of the network's input.
        mode: how images fill it.
        batch: images per run.
        selection: which predictions to return.

    Raises:
        ConfigError: `batch` is not a number of images.
        SourceError: an image cannot be read, when its turn comes.
    """
    if not isinstance(batch, int | np.integer) or batch < 1:
        raise ConfigError(f"batch: got {batch}, expected a number of images, 1 or more.")
    return _stream(frames, run, classes, size_hw, mode, batch, selection)


def _stream(
    frames: Iterator[Frame],
    run: Run,
    classes: ClassMap,
    size_hw: tuple[int, int],
    mode: ResizeMode,
    batch: int,
    selection: Selection,
) -> Iterator[Detections]:
    has_warned = False
    while chunk := list(itertools.islice(frames, batch)):
        for frame, scores, labels, boxes in zip(chunk, *run([frame.image for frame in chunk]), strict=True):
            if np.isnan(scores).any() and not has_warned:
                has_warned = True
                logger.warning(
                    "the network returns NaN instead of scores, so nothing is found; are its weights damaged?"
                )
            chosen = selection(scores, labels, boxes)
            view = view_of(frame.image.shape[:2], size_hw, mode)  # pyright: ignore[reportArgumentType]
            yield Detections.from_predictions(
                scores[chosen],
                labels[chosen],
                view.boxes_px(boxes[chosen].astype(np.float32)),
                names=classes.names,
                category_ids=classes.category_ids,
                image=frame.image,
                path=frame.path,
            )
