"""Metrics of a detector on a data set."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import nn

from rtdetrv4.data.batch import prepare_images
from rtdetrv4.evaluation import CocoEvaluator, Metrics
from rtdetrv4.models.postprocess import postprocess
from rtdetrv4.ops.collectives import world_size
from rtdetrv4.runtime.preprocess import ResizeMode, view_of
from rtdetrv4.types import Batch, DetectorOutput


@torch.no_grad()
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
    several labels, whereas `predict` gives it one.

    Args:
        detector: its train or eval mode is restored afterwards.
        loader: this rank's images.
        evaluator: knows all images; reset first.
        image_size: (H, W) to detect at.
        resize: how the loader's images fill it; boxes are mapped back to the original images.
        num_top: detections per image.
    """
    device = next(detector.parameters()).device
    was_training = detector.training
    detector.eval()
    evaluator.reset()
    for batch in loader:
        output: DetectorOutput = detector(prepare_images(batch.images, image_size, device))
        views = [view_of((info.height, info.width), image_size, resize) for info in batch.infos]
        sizes_hw = torch.tensor([(view.height, view.width) for view in views], device=device)
        origins = torch.tensor([(view.left, view.top) * 2 for view in views], device=device)[:, None]
        best = postprocess(output.logits, output.boxes, sizes_hw, num_top)
        evaluator.update(batch.infos, best._replace(boxes_xyxy_px=best.boxes_xyxy_px + origins))
    detector.train(was_training)
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
