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
from rtdetrv4.types import Batch, DetectorOutput


@torch.no_grad()
def validate(
    detector: nn.Module,
    loader: Iterable[Batch],
    evaluator: CocoEvaluator,
    *,
    image_size: tuple[int, int],
    num_top: int = 300,
) -> Metrics:
    """COCO metrics, in float32. A collective call: every rank evaluates its own images and gets the metrics of all.

    Args:
        detector: its train or eval mode is restored afterwards.
        loader: this rank's images.
        evaluator: knows all images; reset first.
        image_size: (H, W) to detect at.
        num_top: detections per image.
    """
    device = next(detector.parameters()).device
    was_training = detector.training
    detector.eval()
    evaluator.reset()
    for batch in loader:
        output: DetectorOutput = detector(prepare_images(batch.images, image_size, device))
        sizes_hw = torch.tensor([(info.height, info.width) for info in batch.infos], device=device)
        evaluator.update(batch.infos, postprocess(output.logits, output.boxes, sizes_hw, num_top))
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
