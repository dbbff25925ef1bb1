"""What a teacher's map says about boxes: its features, averaged over each."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from rtdetrv4.data.batch import STRIDE, prepare_images
from rtdetrv4.data.dataset import DetectionDataset
from rtdetrv4.data.loader import build_loader
from rtdetrv4.distillation import Teacher, unit_parts
from rtdetrv4.probing.sample import BoxSample

BATCH = 8


class BoxFeatures(NamedTuple):
    """The features of the boxes of a sample."""

    features: Tensor
    """(N, D) float32, on the CPU."""
    is_readable: Tensor
    """(N,) boolean: whether the image of the box could be read."""
    ms_per_image: float
    """The teacher's time, in batches of `BATCH`: the median of all batches but the first."""


def box_features(
    teacher: Teacher,
    sample: BoxSample,
    image_size: tuple[int, int],
    device: torch.device,
    tick: Callable[[], object] = lambda: None,
) -> BoxFeatures:
    """Average a teacher's features over boxes, on the grid and from the images that it would have in training.

    Every cell counts by its direction alone, which is what L_DSI aligns, and by the share of the box in it.

    Args:
        teacher: on the device.
        sample: the boxes.
        image_size: (H, W) of the detector that would learn from the teacher.
        device: where to compute.
        tick: called after each batch.
    """
    grid_hw = (image_size[0] // STRIDE, image_size[1] // STRIDE)
    loader = build_loader(DetectionDataset(sample.split, image_size), BATCH, workers=0, shuffle=False)
    features = torch.zeros(len(sample.boxes), teacher.dim)
    is_readable = torch.ones(len(sample.boxes), dtype=torch.bool)
    seconds: list[float] = []
    first = 0
    for batch in loader:
        pixels = prepare_images(batch.images, image_size, device)
        _wait_for(device)
        started = time.perf_counter()
        maps = teacher(pixels, grid_hw)
        _wait_for(device)
        seconds.append((time.perf_counter() - started) / len(batch.infos))
        directions = unit_parts(maps.float(), teacher.parts).cpu()
        for number, (info, directed) in enumerate(zip(batch.infos, directions, strict=True), start=first):
            rows = torch.from_numpy(np.flatnonzero(sample.images == number))
            features[rows] = pool_boxes(directed, torch.from_numpy(sample.boxes)[rows].float())
            is_readable[rows] = info.is_readable
        first += len(batch.infos)
        tick()
    return BoxFeatures(features, is_readable, 1000 * float(np.median(seconds[1:] or seconds)))


def pool_boxes(features: Tensor, boxes: Tensor) -> Tensor:
    """The mean of a map over boxes, to which each cell counts by the area of the box in it.

    Args:
        features: D×h×w.
        boxes: (n, 4): left, top, right, bottom as shares of the map.

    Returns:
        (n, D).
    """
    left, top, right, bottom = boxes.unbind(dim=1)
    rows, columns = _lengths(top, bottom, features.shape[1]), _lengths(left, right, features.shape[2])
    return torch.einsum("ny,nx,dyx->nd", rows, columns, features)


def _lengths(low: Tensor, high: Tensor, count: int) -> Tensor:
    """(n, count): which share of each span lies in each of `count` equal cells of [0, 1]."""
    edges = torch.arange(count + 1, dtype=low.dtype) / count
    overlap = torch.minimum(high[:, None], edges[1:]) - torch.maximum(low[:, None], edges[:-1])
    overlap = overlap.clamp(min=0)
    return overlap / overlap.sum(dim=1, keepdim=True)


def _wait_for(device: torch.device) -> None:
    """Wait until an accelerator has computed what it was given."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
