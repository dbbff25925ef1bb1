"""Metrics of a detector on a data set."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from rich.console import Console
from rich.progress import track
from torch import nn

from rtdetrv4.data.batch import prepare_images, split_images
from rtdetrv4.data.dataset import DetectionDataset
from rtdetrv4.evaluation import CocoEvaluator, Metrics
from rtdetrv4.models.postprocess import postprocess
from rtdetrv4.ops.collectives import world_size
from rtdetrv4.ops.device import is_out_of_memory
from rtdetrv4.runtime.detections import Detections
from rtdetrv4.runtime.preprocess import ResizeMode, view_of
from rtdetrv4.types import Batch, DetectorOutput, ImageInfo, PostprocessedBatch


class FoundInBatch(NamedTuple):
    """What is found in some images."""

    infos: tuple[ImageInfo, ...]
    found: PostprocessedBatch
    """In pixels of the original images."""


def find_objects(
    detector: nn.Module,
    loader: Iterable[Batch],
    *,
    image_size: tuple[int, int],
    resize: ResizeMode = "stretch",
    num_top: int = 300,
) -> Iterator[FoundInBatch]:
    """Detect in images as they are, in float32; if memory runs out, batches are cut into more parts.

    Args:
        detector: in eval mode.
        loader: the images, not augmented.
        image_size: (H, W) to detect at.
        resize: how the loader's images fill it; boxes are mapped back to the original images.
        num_top: (query, class) pairs per image.

    Yields:
        Images in the order of `loader`.
    """
    device = next(detector.parameters()).device

    @torch.no_grad()
    def detect(batch: Batch) -> PostprocessedBatch:
        output: DetectorOutput = detector(prepare_images(batch.images, image_size, device))
        views = [view_of((info.height, info.width), image_size, resize) for info in batch.infos]
        sizes_hw = torch.tensor([(view.height, view.width) for view in views], device=device)
        origins = torch.tensor([(view.left, view.top) * 2 for view in views], device=device)[:, None]
        best = postprocess(output.logits, output.boxes, sizes_hw, num_top)
        return best._replace(boxes_xyxy_px=best.boxes_xyxy_px + origins)

    num_parts = 1
    for batch in loader:
        while True:
            parts = split_images(batch, num_parts)
            try:
                found = [detect(part) for part in parts]
                break
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error) or len(parts) == len(batch.images):
                    raise
            num_parts *= 2
        for part, best in zip(parts, found, strict=True):
            yield FoundInBatch(part.infos, best)


def validate(
    detector: nn.Module,
    loader: Iterable[Batch],
    evaluator: CocoEvaluator,
    *,
    image_size: tuple[int, int],
    resize: ResizeMode = "stretch",
    num_top: int = 300,
) -> Metrics:
    """COCO metrics, in float32. A collective call: every rank evaluates its own images and gets the metrics of all.

    By COCO's convention, the `num_top` best (query, class) pairs count, whatever their score: an object may have
    several labels, whereas `predict` gives it one. If memory runs out, batches are cut into more parts.

    Args:
        detector: its train or eval mode is restored afterwards.
        loader: this rank's images.
        evaluator: knows all images; reset first.
        image_size: (H, W) to detect at.
        resize: how the loader's images fill it; boxes are mapped back to the original images.
        num_top: detections per image.
    """
    was_training = detector.training
    detector.eval()
    evaluator.reset()
    for part in find_objects(detector, loader, image_size=image_size, resize=resize, num_top=num_top):
        evaluator.update(part.infos, part.found)
    detector.train(was_training)
    return _over_all_ranks(evaluator)


def validate_predictions(
    predict: Callable[[np.ndarray], Detections],
    dataset: DetectionDataset,
    evaluator: CocoEvaluator,
    *,
    rank: int = 0,
    num_top: int = 300,
) -> Metrics:
    """COCO metrics of what `predict` finds in images at full size, as in tiles. A collective call, as `validate`.

    Args:
        predict: from an image, H×W×3 RGB, to what is found in it at any confidence.
        dataset: the images.
        evaluator: knows all of them; reset first.
        rank: of this process, which takes every n-th image of the n ranks.
        num_top: detections per image.

    Raises:
        DatasetError: more than 5 % of the images cannot be decoded.
    """
    evaluator.reset()
    console = Console(stderr=True)
    own = range(rank, len(dataset), world_size())
    is_shown = rank == 0 and console.is_interactive
    for index in track(own, "Evaluating", console=console, transient=True, disable=not is_shown):
        info, pixels = dataset.split.records[index].info, dataset.read(index)
        if pixels is None:
            info, pixels = info._replace(is_readable=False), np.zeros((32, 32, 3), np.uint8)
        found = predict(pixels)[:num_top]
        # The file may be a resized copy of what was annotated.
        scale = np.array([info.width / pixels.shape[1], info.height / pixels.shape[0]] * 2, np.float32)
        arrays = (found.confidence, found.class_id, found.xyxy * scale)
        evaluator.update([info], PostprocessedBatch(*(torch.from_numpy(array)[None] for array in arrays)))
    return _over_all_ranks(evaluator)


def _over_all_ranks(evaluator: CocoEvaluator) -> Metrics:
    """The metrics of what all ranks have evaluated."""
    ranks = world_size()
    if ranks == 1:
        return evaluator.compute()
    states: list[dict] = [{} for _ in range(ranks)]
    dist.all_gather_object(states, evaluator.state())
    evaluator.merge(states)
    metrics = [evaluator.compute() if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(metrics)
    assert metrics[0] is not None
    return metrics[0]
