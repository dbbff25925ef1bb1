"""COCO metrics of an exported model, without torch."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from itertools import islice

import numpy as np
from rich.console import Console
from rich.progress import Progress

from rtdetrv4.data.decode import read_image
from rtdetrv4.data.records import Record, Split, too_many
from rtdetrv4.errors import DatasetError, ExportError
from rtdetrv4.evaluation.coco_evaluator import CocoEvaluator, Metrics
from rtdetrv4.runtime.exported_detector import ExportedDetector
from rtdetrv4.runtime.preprocess import ResizeMode, view_of
from rtdetrv4.runtime.slicing import Slicing
from rtdetrv4.types import ImageInfo

logger: logging.Logger = logging.getLogger(__name__)

NUM_TOP = 300
"""(Query, class) pairs that count in an image, as in `rtdetrv4.training.validation.validate`."""
Found = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Three arrays with a row for each image; see `evaluate_run` and `_find`."""
_UNREADABLE = np.zeros((32, 32, 3), np.uint8)


def evaluate_exported(
    detector: ExportedDetector,
    split: Split,
    evaluator: CocoEvaluator | None = None,
    *,
    batch: int = 1,
    slicing: Slicing | None = None,
    workers: int = 1,
) -> Metrics:
    """Compute COCO metrics, counting the 300 best (query, class) pairs of an image, whatever their score.

    Args:
        detector: the exported model.
        split: the images, labeled by the classes of the model.
        evaluator: keeps the detections, for a report; None makes one.
        batch: images per run; a file exported with a fixed batch size always uses that.
        slicing: tiles to detect in, as in `predict`; None for whole images.
        workers: threads that read images ahead.

    Raises:
        DatasetError: more than 5 % of the images cannot be decoded.
        ExportError: the runtime fails, or all numbers are NaN or infinite.
    """
    evaluator = evaluator or CocoEvaluator(split.records, split.classes)
    evaluator.reset()
    if slicing is None or not any(slicing.cuts((each.info.height, each.info.width)) for each in split.records):
        metadata = detector.metadata
        find = partial(_find, detector.run, metadata.image_size, metadata.resize)
        chunk = metadata.batch or batch
    else:
        find, chunk = partial(_find_in_tiles, detector, slicing=slicing, batch=batch), 1
    return _evaluate(find, chunk, split, evaluator, workers)


def evaluate_run(
    run: Callable[[Sequence[np.ndarray]], Found],
    split: Split,
    evaluator: CocoEvaluator,
    *,
    image_size: tuple[int, int],
    resize: ResizeMode = "stretch",
    batch: int = 1,
) -> Metrics:
    """`evaluate_exported` for anything that runs as an `ExportedDetector` does.

    Args:
        run: N images, H×W×3 RGB → scores N×Q, labels N×Q, and boxes N×Q×4 (xyxy, in the frame from 0 to 1).
        split: the images, labeled by the classes that `run` finds.
        evaluator: keeps the detections; reset first.
        image_size: the height and width, in pixels, that `run` brings images to.
        resize: how it does that.
        batch: images per run.

    Raises:
        DatasetError: more than 5 % of the images cannot be decoded.
    """
    evaluator.reset()
    return _evaluate(partial(_find, run, image_size, resize), batch, split, evaluator, workers=1)


def _evaluate(
    find: Callable[[Sequence[ImageInfo], Sequence[np.ndarray]], Found],
    chunk: int,
    split: Split,
    evaluator: CocoEvaluator,
    workers: int,
) -> Metrics:
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_interactive) as progress:
        images = _read(split, workers, ahead=2 * max(chunk, workers))
        images = iter(progress.track(images, total=len(split.records), description="Evaluating"))
        while found := list(islice(images, chunk)):
            infos, pixels = zip(*found, strict=True)
            evaluator.add(infos, *find(infos, pixels))
    if evaluator.is_invalid:
        raise ExportError("the network returns NaN or infinite numbers for every image; are its weights damaged?")
    return evaluator.compute()


def _find(
    run: Callable[[Sequence[np.ndarray]], Found],
    image_size: tuple[int, int],
    resize: ResizeMode,
    infos: Sequence[ImageInfo],
    pixels: Sequence[np.ndarray],
) -> Found:
    """Boxes B×N×4 (xyxy) in pixels of the original images, scores B×N, labels B×N."""
    scores, labels, boxes = (each[:, :NUM_TOP] for each in run(pixels))
    views = [view_of((info.height, info.width), image_size, resize) for info in infos]
    found = [view.boxes_px(each.astype(np.float32)) for view, each in zip(views, boxes, strict=True)]
    return np.stack(found), scores, labels


def _find_in_tiles(
    detector: ExportedDetector,
    infos: Sequence[ImageInfo],
    pixels: Sequence[np.ndarray],
    *,
    slicing: Slicing,
    batch: int,
) -> Found:
    """What `predict` finds in one image, in tiles."""
    (info,), (image,) = infos, pixels
    found = detector.predict(
        image,
        conf=0.0,
        batch=batch,
        duplicates="keep",
        slice=slicing.size_hw,
        overlap=slicing.overlap,
        whole=slicing.whole,
    )[0][:NUM_TOP]
    # The file may be a resized copy of what was annotated.
    scale = np.array([info.width / image.shape[1], info.height / image.shape[0]] * 2, np.float32)
    return (found.xyxy * scale)[None], found.confidence[None], found.class_id[None]


def _read(split: Split, workers: int, *, ahead: int) -> Iterator[tuple[ImageInfo, np.ndarray]]:
    """The images of a split at full resolution, H×W×3 RGB, in order; those that cannot be decoded are marked as such.

    Raises:
        DatasetError: more than 5 % of the images cannot be decoded.
    """
    num_unreadable = 0
    for record, load in _ahead(split, workers, ahead):
        try:
            yield record.info, load()
        except DatasetError as error:
            num_unreadable += 1
            if too_many(num_unreadable, len(split.records)):
                raise DatasetError(
                    f"{num_unreadable} of {len(split.records)} images cannot be read, the last one because {error}; "
                    "replace the files, or delete their entries from the annotations"
                ) from error
            logger.warning("%s; left out of the evaluation", error)
            yield record.info._replace(is_readable=False), _UNREADABLE


def _ahead(split: Split, workers: int, ahead: int) -> Iterator[tuple[Record, Callable[[], np.ndarray]]]:
    """Records, each with a function that waits for its image; up to `ahead` images are read before they are needed."""
    waiting: deque[tuple[Record, Future[np.ndarray]]] = deque()
    records = iter(split.records)
    with ThreadPoolExecutor(max(workers, 1)) as pool:
        try:
            while True:
                for record in islice(records, ahead - len(waiting)):
                    size_hw = (record.info.height, record.info.width)
                    waiting.append((record, pool.submit(read_image, split.image_dir / record.info.file_name, size_hw)))
                if not waiting:
                    return
                record, image = waiting.popleft()
                yield record, image.result
        finally:
            for _, image in waiting:
                image.cancel()
